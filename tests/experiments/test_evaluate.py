"""The evaluation command on two small sequences in Sintel's format, one of them damaged."""

import json

import numpy as np
import pytest

from align3r_jax.io import trajectory
from tests.data.readers import folders
from tests.experiments.test_convert_weights import run_cases

COUNT = 5


def write_predictions(root, world, names):
    """Depth wrong by scale and shift, the true path in another world with scalars first, masks."""
    for name in names:
        (root / name / "depth").mkdir(parents=True)
        (root / name / "dynamic_mask").mkdir()
        for k in range(COUNT):
            frame = f"frame_{k + 1:04d}"
            np.save(root / name / "depth" / f"{frame}.npy", 0.25 * world.depth[k] + 0.1)
            grey = world.dynamic_mask[k].astype(np.uint8) * 255
            folders.picture(root / name / "dynamic_mask" / f"{frame}.png", grey)
        moved = world.world_from_cam.copy()
        moved[:, :3, 3] = 3 * moved[:, :3, 3] + [1, 2, 3]
        trajectory.write_tum(root / name / "pred_traj.txt", np.arange(COUNT), moved)
        rows = np.loadtxt(root / name / "pred_traj.txt")
        np.savetxt(root / name / "pred_traj.txt", rows[:, [0, 1, 2, 3, 7, 4, 5, 6]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every command once, in one process: the folder, and name -> (code, stdout, stderr)."""
    root = tmp_path_factory.mktemp("evaluate")
    world = folders.sample_world(COUNT)
    still = np.zeros((COUNT - 1, *world.depth.shape[1:], 2))
    for name in ("bad", "good", "other"):
        folders.sintel(root / "set", name, world, still)
        for k in range(COUNT):
            mask = world.dynamic_mask[k].astype(np.uint8) * 255
            place = root / "set" / "training" / "dynamic_label_perfect" / name
            folders.picture(place / f"frame_{k + 1:04d}.png", mask)
    (root / "set" / "training" / "depth" / "bad" / "frame_0003.dpt").unlink()
    write_predictions(root / "theirs", world, ("bad", "good", "other"))

    def command(task, output, *more, protocol="align3r_paper", dataset="sintel"):
        return [f"--task={task}", f"--dataset={dataset}", f"--root={root}/set",
                f"--protocol={protocol}", f"--output={root}/{output}", *more]  # fmt: skip

    theirs = f"--predictions={root}/theirs"
    small = ("--running=ours", "--sequences=good", "--max_frames=3", "--size=64")
    ran = ("--sequences=good", "--max_frames=4", "--size=64", "--iterations=4",
           "--weights=align3r_small", "--prior=plane")  # fmt: skip
    cases = {
        "depth": command("video_depth", "depth", theirs),
        "again": command("video_depth", "depth", theirs),
        "first": command("video_depth", "shards", theirs, "--shard=1/2", "--noplots"),
        "second": command("video_depth", "shards", theirs, "--shard=2/2", "--noplots"),
        "pose": command("camera_pose", "pose", theirs, "--quaternions=wxyz"),
        "motion": command("motion", "motion", theirs, "--sequences=good"),
        "ran": command("video_depth", "ran", *ran, "--keep_predictions"),
        "judged": command("video_depth", "judged", f"--predictions={root}/ran/predictions",
                          "--sequences=good", "--max_frames=4"),
        "single": command("single_depth", "single", *small, "--weights=align3r_small",
                          protocol="monst3r"),
        "no weights": command("video_depth", "x"),
        "unused": command("video_depth", "x", theirs, "--weights=align3r_small"),
        "set": command("video_depth", "x", theirs, dataset="sintle"),
        "shard": command("video_depth", "x", theirs, "--shard=3/2"),
        "covers": command("motion", "x", theirs, protocol="depthcrafter"),
        "nothing": command("video_depth", "x", f"--predictions={root}/nowhere"),
    }  # fmt: skip
    return root, dict(zip(cases, run_cases("evaluate", list(cases.values()))))


def summary(root, output):
    return json.loads((root / output / "summary.json").read_text())


def test_depth_of_files_and_a_damaged_sequence(runs):
    root, results = runs
    code, out, err = results["depth"]
    assert code == 1, err
    found = summary(root, "depth")
    assert set(found["sequences"]) == {"good", "other"}
    assert "frame" in found["failed"]["bad"] and "depth" in found["failed"]["bad"]
    assert found["average"]["Abs Rel"] < 1e-3 and found["average"]["sequences"] == 2
    scores = found["sequences"]["good"]
    assert scores["scale"] == pytest.approx(4, rel=1e-3) and 0 < scores["TAE"] < 0.1
    text = (root / "depth" / "table.md").read_text()
    assert "means over 23 sequences, of which 0 are among the 2 of this run" in text
    assert "Failed: bad:" in text and "bad (failed)" in text
    assert "| Align3R (Depth Pro) | 0.263 |" in text and "n.f." in text
    assert "\\toprule" in (root / "depth" / "table.tex").read_text()
    page = (root / "depth" / "table.html").read_text()
    for name in ("good_error.png", "good_delta.svg"):
        assert (root / "depth" / "plots" / name).stat().st_size > 500
        assert f"plots/{name}" in page
    record = json.loads((root / "depth" / "sequences" / "good.json").read_text())
    assert record["settings"]["choices"]["depth"]["fit"] == "lad"
    assert record["frames"] == COUNT and record["last_frame"] == "frame_0005.png"


def test_finished_sequences_are_kept_failed_ones_are_not(runs):
    root, results = runs
    assert results["again"][0] == 1
    kept = (root / "depth" / "sequences" / "good.json").stat().st_mtime_ns
    retried = (root / "depth" / "sequences" / "bad.json").stat().st_mtime_ns
    assert retried > kept + 1_000_000
    assert summary(root, "depth")["average"]["sequences"] == 2


def test_shards_share_the_work_and_the_last_writes_everything(runs):
    root, results = runs
    assert (results["first"][0], results["second"][0]) == (1, 0)  # "bad" is the first's
    assert "Not evaluated yet: good" in results["first"][1]
    both, alone = summary(root, "shards"), summary(root, "depth")
    assert both["sequences"] == alone["sequences"] and not both["missing"]
    assert set(both["failed"]) == {"bad"} and "Failed: bad" in results["second"][1]
    assert not (root / "shards" / "plots").exists()


def test_paths_and_masks_of_files(runs):
    root, results = runs
    assert results["pose"][0] == 0, results["pose"]
    found = summary(root, "pose")["average"]
    assert found["ate"] < 1e-6 and found["rpe_rot_deg"] < 1e-4 and found["sequences"] == 3
    assert (root / "pose" / "plots" / "good_above.svg").read_text().startswith("<svg xmlns=")
    assert results["motion"][0] == 0, results["motion"]
    assert summary(root, "motion")["average"]["J"] == 1


def test_methods_run_and_their_predictions_can_be_judged(runs):
    root, results = runs
    for name in ("ran", "judged", "single"):
        assert results[name][0] == 0, results[name]
    found = summary(root, "ran")
    assert found["departures"]["prior"] == "plane" and found["departures"]["max_frames"] == 4
    running = found["settings"]["choices"]["running"]["reconstruct"]
    assert running["equal_confidence"] and running["alignment"]["iterations"] == 4
    assert "Departs from the protocol" in results["ran"][1]
    record = json.loads((root / "ran" / "sequences" / "good.json").read_text())
    assert any("set to 10" in note for note in record["notes"])
    assert record["method"]["predictor"] == "align3r_small, equal confidence"
    stored = root / "ran" / "predictions" / "good"
    assert len(list((stored / "depth").glob("*.npy"))) == 4
    assert len(trajectory.read_tum(stored / "pred_traj.txt")[0]) == 4
    again = summary(root, "judged")["sequences"]["good"]
    assert again["Abs Rel"] == pytest.approx(found["sequences"]["good"]["Abs Rel"], rel=1e-5)
    record = json.loads((root / "single" / "sequences" / "good.json").read_text())
    assert record["method"]["predictor"] == "align3r_small"
    assert 0 < record["scores"]["Abs Rel"] < 1


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("no weights", "runs a pairwise network"),
        ("unused", "drop --weights"),
        ("set", "sintle"),
        ("shard", "expected k/n"),
        ("covers", "says nothing of motion"),
        ("nothing", "does not exist"),
    ],
)
def test_bad_settings_are_sentences(runs, case, sentence):
    code, _, err = runs[1][case]
    assert code == 2 and sentence in err and "Traceback" not in err
