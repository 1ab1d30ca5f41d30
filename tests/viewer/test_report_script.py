"""`experiments.report`: other points from a finished result."""

import subprocess
import sys
from pathlib import Path

import trimesh

from align3r_jax.io import scene_folder
from tests.viewer import bumpy_scene


def _run(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.report", *flags], capture_output=True, text=True,
        cwd=Path(__file__).parents[2], timeout=300,
    )  # fmt: skip


def test_other_rules_give_other_points(tmp_path):
    scene = bumpy_scene.make(3, 32, 40)
    path = scene_folder.save_scene(scene, tmp_path / "a", bumpy_scene.summary(scene))
    before = len(trimesh.load(path / "points.ply").vertices)
    done = _run(str(path), "--min_confidence=4", "--moving", "--edge=0")
    assert done.returncode == 0, done.stderr
    after = len(trimesh.load(path / "points.ply").vertices)
    assert after == (scene.confidence >= 4).sum() < before
    assert f"{after:,} points" in done.stdout
    assert len(trimesh.load(path / "scene.glb").geometry["points"].vertices) == after
    assert "bumpy_wall.mp4" in (path / "report.html").read_text(encoding="utf-8")
    assert not [entry for entry in path.iterdir() if entry.name.startswith(".")]
