"""`experiments.view` as a user runs it: the three ways to look, and flags that would be ignored."""

import contextlib
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import av
import pytest

from align3r_jax.io import scene_folder
from tests.viewer import bumpy_scene

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    scene = bumpy_scene.make(6, 32, 48)
    path = tmp_path_factory.mktemp("view") / "walk"
    return scene_folder.save_scene(scene, path, bumpy_scene.summary(scene))


def _run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.view", *map(str, arguments)], capture_output=True,
        text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip


def test_a_page_and_a_video_in_one_go(result, tmp_path):
    before = sorted(result.rglob("*"))
    page, video = tmp_path / "scene.html", tmp_path / "out.mp4"
    done = _run(
        result, f"--save={page}", f"--render={video}", "--path=follow", "--width=96",
        "--height=54", "--fps=10", "--seconds=0.5", "--end=5", "--stride=2", "--colour=depth",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{page}, {page.stat().st_size / 1e6:.1f} MB" in done.stdout
    assert "<title>walk</title>" in page.read_text(encoding="utf-8")
    assert '"frames":[0,1,2]' in page.read_text(encoding="utf-8")  # 0, 2 and 4 of the video
    with av.open(str(video)) as container:
        pictures = list(container.decode(video=0))
    assert len(pictures) == 5 and (pictures[0].width, pictures[0].height) == (96, 54)
    assert sorted(result.rglob("*")) == before


def test_the_live_viewer_serves_until_it_is_interrupted(result):
    pytest.importorskip("viser", reason="viser is not installed")
    # A suite that runs in the background of a shell hands on that SIGINT is ignored.
    start = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "runpy.run_module('experiments.view', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", start, str(result), "--nobrowser", "--port=8947"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          cwd=ROOT) as process:  # fmt: skip
        try:
            line = process.stdout.readline()
            assert line.startswith("Look at: http://localhost:89"), line + process.stderr.read()
            url = line.split()[2]
            with contextlib.closing(urllib.request.urlopen(url, timeout=30)) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name the result to look at"),
        (["--save=scene.txt"], "--save=scene.html"),
        (["--render=out.avi"], "--render=scene.mp4"),
        (["--path=follow"], "--path belongs to --render"),
        (["--save={}/x.html", "--port=9000"], "--port belongs to the live viewer"),
        (["--save={}/x.html", "--start=6"], "none is left"),
        (["--save={}/x.html", "--colour=rainbow"], "rainbow"),
    ],
)
def test_what_cannot_be_meant_is_told(result, tmp_path, arguments, words):
    arguments = [argument.format(tmp_path) for argument in arguments]
    done = _run(*([result] if arguments else []), *arguments)
    assert done.returncode in (1, 2) and words in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
