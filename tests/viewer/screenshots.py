"""Draws the pictures of docs/viewer.md from a result of the sample clip.

python -m experiments.reconstruct --video=data/samples/room_walk.mp4 --output=outputs/room_walk
python -m tests.viewer.screenshots outputs/room_walk docs/images
"""

import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2

from align3r_jax.io import pointcloud, preview, scene_folder
from align3r_jax.viewer import fly_through, layers, live, static_page
from tests.viewer import chromium, test_live

SIZE = (1180, 740)
RULES = pointcloud.PointFilter(max_points=250_000)


def _save(picture, folder: Path, name: str, width: int = 860) -> None:
    """Writes a picture of few colours, which the documentation can afford."""
    height = round(picture.shape[0] * width / picture.shape[1])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    (folder / name).write_bytes(preview.encode_webp(small, 80))


def _live(scene, folder: Path) -> None:
    viewer = live.LiveViewer(layers.Layers(scene, RULES), layers.Look(), "image", name="room_walk")
    threading.Thread(target=viewer.run, daemon=True).start()
    with chromium.launch() as page:
        opened = test_live.Browser(page, viewer.url)
        page.resize(*SIZE)
        # Not by keys: the page turns its view by them as well.
        viewer._controls._frame.value = 12
        _shoot(page, folder, "viewer_live.webp")
        opened.choose("Gather", "this frame only")
        opened.choose("Colour", "depth")
        _shoot(page, folder, "viewer_depth.webp")
        opened.choose("Gather", "all frames")
        opened.choose("Colour", "motion")
        opened.tick("Look through the camera")
        _shoot(page, folder, "viewer_through.webp")
    viewer.stop()


def _shoot(page: chromium.Page, folder: Path, name: str) -> None:
    """Saves the window once it has stayed the same for a while; a GPU in software is slow."""
    # Away from the controls, whose hints would stand in the picture.
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
    end, same, before = time.monotonic() + 60, 0, None
    while same < 8 and time.monotonic() < end:
        time.sleep(0.5)
        now = page.picture()
        same = same + 1 if before is not None and (now == before).all() else 0
        before = now
    _save(before, folder, name)


def _page(scene, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary, chromium.launch() as page:
        path = Path(temporary) / "scene.html"
        static_page.write(path, scene, RULES, static_page.Start(), "room_walk")
        page.prefer(prefers_color_scheme="dark")
        page.resize(*SIZE)
        page.open(path)
        page.set_value('[data-control="frame"]', 16)
        _shoot(page, folder, "viewer_page.webp")


def _video(scene, folder: Path) -> None:
    shown = layers.Layers(scene, pointcloud.PointFilter(max_points=1_000_000))
    for path, seconds in (("orbit", 1.3), ("follow", 2.6)):
        options = fly_through.Options(path=path, fps=10, width=640, height=360)
        pictures = fly_through.render(shown, layers.Look(), "image", options)
        for _ in range(round(seconds * options.fps)):
            picture = next(pictures)
        _save(picture, folder, f"viewer_{path}.webp", 640)


if __name__ == "__main__":
    result = scene_folder.load_scene(sys.argv[1])
    for draw in (_live, _page, _video):
        draw(result, Path(sys.argv[2]))
