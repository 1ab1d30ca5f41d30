"""The Python of the pages runs as it stands; README's with small files in place of the user's."""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import align3r_jax
from align3r_jax.alignment import align
from align3r_jax.io import preview
from tests.weights import tiny_networks

ROOT = Path(__file__).parents[1]
HEAVY = {"python.md": {0, 4, 5}}  # blocks that compile for more than ten seconds
RUN_ALONE = ("conventions.md", "python.md")


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page, without those of other languages."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def _cases():
    for name in RUN_ALONE:
        for k in range(len(blocks(ROOT / "docs" / name))):
            marks = [pytest.mark.slow] if k in HEAVY.get(name, ()) else []
            yield pytest.param(name, k, marks=marks, id=f"{name}-{k}")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder with the data, to write outputs into."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path


def run(code: str, name: str, scope: dict) -> dict:
    exec(compile(code, name, "exec"), scope)
    return scope


def shapes(code: str) -> list[tuple[str, tuple[int, ...]]]:
    """(expression, shape) of every line `expression  # (A, B, C) type = (1, 2, 3)`."""
    found = re.findall(r"(?m)^([\w.]+) +# \([^)]*\)[^=\n]*= \(([\d, ]+)\)", code)
    return [(left, tuple(int(part) for part in right.split(","))) for left, right in found]


@pytest.mark.parametrize(("page", "number"), list(_cases()))
def test_blocks_run_alone(page, number, project):
    code = blocks(ROOT / "docs" / page)[number]
    if (page, number) == ("python.md", 4):  # trains on what the block before it writes
        run(blocks(ROOT / "docs" / page)[3], page, {})
    scope = run(code, f"{page}[{number}]", {})
    for expression, shape in shapes(code):
        assert eval(expression, scope).shape == shape, expression
    if (page, number) == ("python.md", 0):
        assert (project / "outputs/python/report.html").exists()
        exported = json.loads((project / "outputs/python/export/ply/export.json").read_text())
        assert exported["points"]["static"] > 0
    if (page, number) == ("conventions.md", 0):
        np.testing.assert_allclose(
            scope["K_working"], [[250, 0, 159.5], [0, 250, 87.5], [0, 0, 1]], rtol=1e-6
        )
        size = scope["size"]
        assert (size.resized, size.crop, size.working) == ((180, 320), (2, 0), (176, 320))
    if (page, number) == ("python.md", 4):
        assert int(scope["state"].step) == 2
        assert all(np.isfinite(value).all() for value in jax.tree.leaves(scope["scores"]))


def test_ten_lines_are_about_ten():
    for code in blocks(ROOT / "docs" / "python.md"):
        lines = [line for line in code.splitlines() if line and "import" not in line]
        assert len(lines) <= 16, lines[0]


@pytest.mark.slow
def test_the_blocks_of_the_readme_run(project):
    first, second = blocks(ROOT / "README.md")
    frames, _ = align3r_jax.read_frames("data/samples/room_walk.mp4", size=64, max_frames=3)
    preview.write_mp4(project / "my.mp4", iter(frames.images), 12.0)
    scope = run(first.replace("size=320", "size=64"), "README.md[0]", {})
    scene = scope["scene"]
    assert scene.depth.shape == scene.dynamic_mask.shape == (3, 48, 64)
    assert scene.world_from_cam.shape == (3, 4, 4) and scene.intrinsics.shape == (3, 3, 3)

    # The second block goes on from there: weights, and what it calls by name, are small ones.
    tiny_networks.write_pth(project / "depth_pro.pth", "depth_anything")
    (project / "weights").mkdir()
    second = second.replace("weights/align3r", "align3r_small").replace('.pt"', '.pth"')
    predictions, graph, flow = _pairs()
    prior = align3r_jax.structs.DepthPrior(
        np.asarray(scene.depth), np.asarray(scene.depth), None, name="files"
    )
    scope |= {"prior": prior, "flow": flow, "predictions": predictions, "graph": graph}
    scope = run(second, "README.md[1]", scope)
    assert scope["scene"].depth.shape == (3, 48, 64)
    result = align.result_of(predictions, graph, scope["variables"], scope["trace"])
    assert np.isfinite(np.asarray(result.trace["total"])).all()


def _pairs():
    """Point maps of three frames, their pairs, and a flow between them that stands still."""
    from align3r_jax import pairing
    from data.procedural import wavy_wall

    graph = pairing.make_pairs(3, "swinstride-1-noncyclic")
    predictions = wavy_wall.predict(wavy_wall.world(3, 24, 32), graph)
    pairs = pairing.directed_pairs(graph)
    flow = align3r_jax.structs.OpticalFlow(
        pairs, np.zeros((len(pairs), 24, 32, 2), np.float32),
        np.ones((len(pairs), 24, 32), np.float32),
    )  # fmt: skip
    return predictions, graph, flow


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(project, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (project / "align3r_jax").symlink_to(ROOT / "align3r_jax")
    (project / "docs/notebooks").mkdir(parents=True)
    monkeypatch.chdir(project / "docs/notebooks")  # where Jupyter starts it
    cells = json.loads((ROOT / "docs/notebooks/sample_clip.ipynb").read_text())["cells"]
    scope: dict = {}
    for k, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            run("".join(cell["source"]), f"sample_clip.ipynb[{k}]", scope)
    matplotlib.pyplot.close("all")
    assert scope["errors"]["ate"] < 0.1 * scope["errors"]["standing_ate"]
    assert scope["errors"]["abs_rel"] < 0.6 * scope["errors"]["constant_abs_rel"]
    assert (project / "outputs/notebook/export/colmap/sparse/0/cameras.txt").exists()
