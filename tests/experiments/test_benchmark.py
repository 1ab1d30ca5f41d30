"""The benchmark of all stages: a small case, counts of batches, the report, a fake checkout."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax import config as config_lib
from align3r_jax.errors import UserError
from align3r_jax.predictors.network import NetworkPredictor
from align3r_jax.structs import Frames, PairGraph, PairPredictions, WorkingSize
from experiments import (
    benchmark_alignment,
    benchmark_cases,
    benchmark_measure,
    benchmark_pairwise,
    benchmark_peer,
    benchmark_prior,
    benchmark_report,
    benchmark_rows,
    benchmark_stages,
)

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data" / "samples" / "room_walk.mp4"
PRESET = "test_network"
NETWORK = config_lib.NetworkConfig(
    enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=32, dec_depth=2, dec_num_heads=2,
    prior_branch=False, head="linear",
)  # fmt: skip
SETTINGS = benchmark_cases.Settings(
    size=64, dtype="float32", prior="auto", pair_batch=1, sample=1, full=False, quick=True,
    video=None,
)  # fmt: skip
MACHINE = {"device": "cpu", "platform": "cpu", "processor": "x", "cores": 2, "jax": "0"}


@pytest.fixture(scope="module", autouse=True)
def network():
    with mock.patch.dict(config_lib.NETWORK_PRESETS, {PRESET: NETWORK}):
        yield


@pytest.fixture(scope="module")
def case(network, tmp_path_factory):
    """Two frames: their scene takes no iterations, so that little is compiled; nor is the single
    iteration of Adam, which the slow test measures."""
    iteration = benchmark_rows.Row(
        benchmark_rows.ITERATION, 2, "pair", 1.0, 1.0, flops=1e9, part_of="alone"
    )
    with mock.patch.object(benchmark_alignment, "iteration_row", lambda *_: iteration):
        return benchmark_cases.run(PRESET, 2, SAMPLE, SETTINGS, tmp_path_factory.mktemp("case"))


def test_every_stage_has_a_row(case):
    rows = {row["stage"]: row for row in case["rows"]}
    wanted = set(benchmark_rows.STAGES) | {benchmark_rows.HEADS, benchmark_rows.ITERATION}
    assert set(rows) == wanted - {"prior"}  # DUSt3R takes none
    for name, row in rows.items():
        assert row["seconds"] > 0 and row["cpu_seconds"] > 0, name
        assert row["flop_share"] is None or 0 < row["flop_share"] < 1.2, name
        assert (row["part_of"] != "") == (name in ("heads", "one Adam iteration"))
    for name in ("encode", "decode pairs", "heads"):
        assert rows[name]["gflop"] > 0 and rows[name]["compile_seconds"] > 0
        assert rows[name]["counted"] == "formula (networks.cost)"
    assert rows["encode"]["items"] == 2 and rows["decode pairs"]["items"] == 2
    assert rows["heads"]["gflop"] < rows["decode pairs"]["gflop"]
    stages = [row for row in rows.values() if not row["part_of"]]
    found = case["summary"]
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in stages))
    network = rows["encode"]["seconds"] + rows["decode pairs"]["seconds"]
    assert found["pairs_per_second"] == pytest.approx(2 / network)
    json.dumps(case, allow_nan=False)


def _flow(num_frames=3, height=16, width=32):
    size = (height, width)
    frames = Frames(
        np.zeros((num_frames, *size, 3), np.uint8),
        np.arange(float(num_frames)),
        WorkingSize(size, size, (0, 0), size),
        tuple(map(str, range(num_frames))),
    )
    pairs = np.array([[0, 1], [1, 2], [0, 2], [1, 0], [2, 1], [2, 0]], np.int32)
    points = np.ones((6, *size, 3), np.float32)
    first = PairPredictions(points, points, points[..., 0], points[..., 0])
    graphs = [PairGraph(pairs, num_frames, True, "test")]
    return benchmark_stages.Flow([], frames, frames.images, None, graphs, first, "flat")


@pytest.mark.slow
def test_figures_are_of_the_batches_that_ran():
    """Counted at the predictor itself: one unmeasured batch, then as many as the row says."""
    model = benchmark_pairwise.load(PRESET)
    ceilings = benchmark_measure.Ceilings("float32", 1e12, 1e12, 1e10, 1e10)
    ran = {"frames": 0, "pairs": 0}
    prepare, predict = NetworkPredictor.prepare, NetworkPredictor.predict

    def counted_prepare(self, frames, *rest):
        ran["frames"] += frames.num_frames
        return prepare(self, frames, *rest)

    def counted_predict(self, state, graph):
        ran["pairs"] += graph.num_pairs
        return predict(self, state, graph)

    found = {}
    for name, seconds in (("sampled", 0.0), ("full", math.inf)):
        ran.update(frames=0, pairs=0)
        with (
            mock.patch.object(NetworkPredictor, "prepare", counted_prepare),
            mock.patch.object(NetworkPredictor, "predict", counted_predict),
        ):
            rows = benchmark_pairwise.rows(
                model, _flow(), benchmark_pairwise.Budget(1, seconds, 2), "float32", ceilings
            )
        found[name] = {row.stage: row for row in rows}
        encode, decode = found[name]["encode"], found[name]["decode pairs"]
        assert ran == {"frames": 1 + encode.run, "pairs": 1 + decode.run}
        assert (encode.batches, decode.batches) == (3, 6)
    assert found["sampled"]["encode"].run == found["sampled"]["decode pairs"].run == 2
    assert found["full"]["decode pairs"].run == 6 and not found["full"]["encode"].sampled
    for stage in ("encode", "decode pairs"):
        part, whole = (found[k][stage].as_dict(ceilings) for k in ("sampled", "full"))
        assert part["gflop"] == pytest.approx(whole["gflop"])
        assert part["sampled"] and part["seconds"] == pytest.approx(
            part["seconds_run"] * part["batches"] / 2
        )
        rate = part["flops"] * 2 / part["seconds_run"]
        assert part["flop_per_second"] == pytest.approx(rate)
        assert part["flop_share"] == pytest.approx(rate / 1e12)


def test_nested_sections_keep_their_own_time():
    with benchmark_measure.Sections() as sections, sections.section("outer"):
        time.sleep(0.02)
        with sections.section("inner"):
            time.sleep(0.05)
            jax.jit(lambda x: jnp.sin(x) * 3.25)(jnp.ones(7))
        time.sleep(0.02)
    outer, inner = sections.found["outer"], sections.found["inner"]
    assert outer.seconds >= 0.04 and outer.compile_seconds == 0
    assert inner.seconds >= 0.05 and inner.compile_seconds > 0
    assert outer.cpu_seconds < outer.seconds and inner.peak_mb > 50
    before = inner.compile_seconds
    jax.jit(lambda x: x - 11.5)(jnp.ones(3))  # nobody listens any more
    assert sections.found["inner"].compile_seconds == before


def test_report_keeps_cases_and_resumes(case, tmp_path):
    report = benchmark_report.Report(tmp_path, MACHINE, SETTINGS.facts(), resume=False)
    report.add(case | {"frames": 30})
    report.add(case)
    for name in benchmark_report.FILES:
        assert (tmp_path / name).stat().st_size > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(benchmark_report.FILES)
    again = benchmark_report.Report(tmp_path, MACHINE, SETTINGS.facts(), resume=True)
    assert again.has(PRESET, 2) and again.has(PRESET, 30) and not again.has(PRESET, 10)
    with pytest.raises(UserError, match="another machine"):
        benchmark_report.Report(tmp_path, MACHINE | {"cores": 64}, SETTINGS.facts(), resume=True)
    (tmp_path / "benchmark.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        benchmark_report.Report(tmp_path, MACHINE, SETTINGS.facts(), resume=True)


def test_markdown_and_picture(case):
    sampled = dict(next(row for row in case["rows"] if row["stage"] == "encode"))
    sampled |= {"sampled": True, "run": 2, "batches": 30}
    rows = [sampled if row["stage"] == "encode" else row for row in case["rows"]]
    text = benchmark_report.case_text(case | {"rows": rows})
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows) and len({line.count("|") for line in table}) == 1
    encode = next(line for line in table if line.startswith("| encode"))
    assert "~" in encode and "2 of 30 batches" in encode and "pairs/s" in text
    picture = benchmark_report.chart([case, case])
    widths = [float(part.split('"')[0]) for part in picture.split('width="')[1:]]
    bars = [width for width in widths if width != 12.0]
    assert sum(bars) == pytest.approx(2 * 470, abs=2) and picture.count("<svg") == 1


# ---- the checkout of the user

_TORCH = """
import numpy
__version__ = "fake"
class cuda:
    is_available = staticmethod(lambda: False)
from_numpy = lambda array: array
cat = numpy.concatenate
"""
_MODEL = """
class AsymmetricCroCo3DStereo:
    def __init__(self, **arguments):
        assert arguments["enc_depth"] == 24
    @classmethod
    def from_pretrained(cls, path):
        raise FileNotFoundError(path)
    def to(self, device):
        return self
    def eval(self):
        return self
"""
_INFERENCE = """
import time
def inference(pairs, model, device, batch_size=8, verbose=True):
    for one, two in pairs:
        assert one["img"].shape == (1, 3, 16, 32) and one["idx"] != two["idx"]
        time.sleep(0.02)
"""
_ALIGNER = """
import time
class GlobalAlignerMode:
    PointCloudOptimizer = "PointCloudOptimizer"
class Scene:
    def compute_global_alignment(self, init, niter, schedule, lr):
        time.sleep(0.002 * niter)
def global_aligner(output, device, mode, verbose=True):
    assert len(output["view1"]["idx"]) == len(output["pred1"]["conf"]) == 6
    assert output["pred2"]["pts3d_in_other_view"].shape == (6, 16, 32, 3)
    return Scene()
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    (folder / "dust3r").mkdir(parents=True)
    names = ("__init__", "model", "inference", "cloud_opt")
    for name, text in zip(names, ("", _MODEL, _INFERENCE, _ALIGNER)):
        (folder / "dust3r" / f"{name}.py").write_text(text)
    (folder / "torch.py").write_text(_TORCH)
    return folder


def _ours():
    row = benchmark_rows.Row
    return [row("encode", 3, "frame", 0.1, 0.2), row("decode pairs", 6, "pair", 0.2, 0.4),
            row("align", 3, "frame", 0.5, 0.5)]  # fmt: skip


def test_a_checkout_is_timed_on_the_same_frames(checkout):
    peer = benchmark_peer.check(str(checkout), None, None)
    assert (peer.torch, peer.device) == ("fake", "cpu")
    found = benchmark_peer.compare(peer, _flow(), _ours(), full=False)
    pairs, align = found["rows"]
    assert (pairs["run"], pairs["of"], align["run"], align["of"]) == (4, 6, 10, 300)
    assert pairs["seconds"] >= 0.12 and align["seconds"] >= 0.6  # of all pairs and iterations
    assert pairs["our_seconds"] == pytest.approx(0.3) and align["our_seconds"] == 0.5
    assert pairs["ratio"] == pytest.approx(pairs["seconds"] / 0.3)
    lines = benchmark_report._peer_lines(found)
    assert lines[-2].count("|") == lines[-1].count("|") == lines[2].count("|")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("nowhere", "is no folder"),
        ("dust3r/model.py", "has no dust3r/model.py"),
        ("dust3r/inference.py", "No module named 'dust3r.inference'"),
        ("weights", "FileNotFoundError: gone.pth"),
        ("aligner", "ImportError"),
    ],
)
def test_what_a_checkout_lacks_is_said(checkout, broken, says):
    path, weights = checkout, None
    if broken == "nowhere":
        path = checkout / "nowhere"
    elif broken == "weights":
        weights = "gone.pth"
    elif broken == "aligner":
        (checkout / "dust3r" / "cloud_opt.py").write_text("")
    else:
        (checkout / broken).unlink()
    if broken == "aligner":  # the network is timed all the same
        peer = benchmark_peer.check(str(path), None, weights)
        pairs, align = benchmark_peer.compare(peer, _flow(), _ours(), full=True)["rows"]
        assert pairs["ratio"] > 0 and says in align["failed"]
        return
    with pytest.raises(UserError, match=says):
        peer = benchmark_peer.check(str(path), None, weights)
        benchmark_peer.compare(peer, _flow(), _ours(), full=False)


def test_python_without_torch_and_no_python(checkout):
    (checkout / "torch.py").write_text("raise ImportError('no torch here')")
    with pytest.raises(UserError, match="no torch here; install PyTorch"):
        benchmark_peer.check(str(checkout), None, None)
    with pytest.raises(UserError, match="cannot be run"):
        benchmark_peer.check(str(checkout), str(checkout / "python"), None)


# ---- what users name


def test_names_of_presets_and_priors():
    assert benchmark_pairwise.preset_name("align3r_vitl_512") == "align3r_vitl_512_dpt"
    assert benchmark_pairwise.preset_name("small") == "align3r_small"
    assert benchmark_pairwise.preset_name("flow") == "flow"
    for name, says in (("dust3r", "not one alone"), ("vggt", "unknown"), ("", "not one alone")):
        with pytest.raises(UserError, match=says):
            benchmark_pairwise.preset_name(name)
    assert benchmark_prior.check("depth_pro") == "depth_pro"
    with pytest.raises(UserError, match="--prior=midas is unknown"):
        benchmark_prior.check("midas")


def test_a_video_that_is_too_short_is_refused(tmp_path):
    with pytest.raises(UserError, match="has 24 frames, --frames asks for 30"):
        benchmark_stages.run(SAMPLE, 30, 64, config_lib.ReconstructConfig(), tmp_path, True)


def test_the_script_refuses_with_a_sentence(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", "--frames=10,1", f"--output={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 2 and "--frames=10,1: expected whole numbers" in process.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_script_on_all_kinds_of_presets(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmark", f"--output={tmp_path}", "--quick",
               "--preset=flow,small,tiny_align3r", "--frames=4", "--size=64", f"--video={SAMPLE}",
               "--prior=small"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    cases = json.loads((tmp_path / "benchmark.json").read_text())["cases"]
    assert [case["preset"] for case in cases] == ["align3r_small", "flow", "tiny_align3r"]
    for case in cases:
        stages = [row["stage"] for row in case["rows"] if not row["part_of"]]
        assert stages == list(benchmark_rows.STAGES), case["preset"]
        iteration = case["rows"][-1]
        assert iteration["stage"] == benchmark_rows.ITERATION and iteration["gflop"] > 0
    again = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("frames ...") == 0
