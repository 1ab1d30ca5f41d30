"""The export command: what users type, and the sentences for what they mistype."""

import json

import pytest

from tests.experiments.test_convert_weights import run_cases
from tests.io import export_scene


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return export_scene.save(tmp_path_factory.mktemp("export"))


def test_formats_options_and_sentences(saved, tmp_path):
    result, pictures, _, _ = map(str, saved)
    (tmp_path / "empty").mkdir()
    moved = f"{tmp_path}/moved"
    cases = [
        ([result, "--to=ply,png16", "--resolution=original", "--points=40", "--split=static"], ""),
        ([result, "--to=kitti", f"--output={tmp_path}/apart"], ""),
        ([result, "--to=ply", "--overwrite", "--edge=0", "--min_confidence=0"], ""),
        ([result, "--to=ply"], "exists; pass --overwrite"),
        ([result, "--to=colmap_bim"], "Did you mean 'colmap_bin'?"),
        ([result, "--to=,"], "names no format"),
        ([result, "--to=tum", "--points=9"], "--points changes nothing about tum"),
        ([result, "--to=npz", "--video=x.mp4"], "--resolution=original alone"),
        ([result, "--to=npz", "--resolution=original", f"--video={moved}"], "may have moved"),
        ([f"{tmp_path}/empty", "--to=ply"], "holds no result"),
        ([f"{tmp_path}/missing", "--to=ply"], "holds no result"),
        (["--to=ply"], "Name the result to export"),
        ([result, result, "--to=ply"], "Unexpected argument"),
    ]
    results = run_cases("export", [arguments for arguments, _ in cases], arguments=1)
    for (arguments, sentence), (code, out, error) in zip(cases, results):
        assert code == (2 if sentence else 0), (arguments, error)
        assert sentence in error and error.count("\n") == (1 if sentence else 0), arguments
        assert ("Error" in error) == bool(sentence) and bool(out) == (not sentence)
    assert "ply: coloured points, world frame: " in results[0][1]
    about = json.loads((saved[0] / "export" / "png16" / "export.json").read_text())
    assert about["image_size"] == [84, 120] and about["split"] == "static"
    ply = json.loads((saved[0] / "export" / "ply" / "export.json").read_text())
    assert ply["points"]["static"] > 40 and set(ply["points"]) == {"static", "dynamic"}
    assert (tmp_path / "apart" / "kitti" / "poses.txt").exists()
