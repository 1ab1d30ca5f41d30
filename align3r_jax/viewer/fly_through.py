"""A fly-through of a result as a video, drawn by the processor: points, cameras and their pictures.

Every picture is drawn at `SUPERSAMPLE` times its size and averaged, which keeps edges smooth. The
recorded camera is drawn as points as well, so that it hides and is hidden as the scene is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from align3r_jax.io import atomic, gltf, preview
from align3r_jax.structs import Scene
from align3r_jax.viewer import camera_path, layers, splat

SUPERSAMPLE = 2
BACKGROUNDS = {"dark": (17, 19, 24), "white": (255, 255, 255)}
FRUSTUM = 1.6  # times the frusta of scene.glb
COVER = 1.25  # points overlap a little, so that oblique surfaces stay closed


@dataclasses.dataclass(frozen=True)
class Options:
    """path: see `camera_path`. width, height: pixels. fps: pictures per second. seconds: None for
    as long as the clip lasts, in whole passes. speed: of the video, 1 is its own. point_size: 1
    covers a pixel of the video. cameras: the recorded cameras are drawn (never on the path
    "recorded", which is inside them).
    """

    path: camera_path.Path = "orbit"
    width: int = 960
    height: int = 540
    fps: float = 30.0
    seconds: float | None = None
    speed: float = 1.0
    point_size: float = 1.0
    background: str = "dark"
    cameras: bool = True


def render(
    shown: layers.Layers, look: layers.Look, colour: layers.Colour, options: Options
) -> Iterator[np.ndarray]:
    """Yields the (height, width, 3) uint8 RGB pictures one after the other."""
    scene = shown.scene
    palette = layers.Palette(scene)
    moments = schedule(scene, options)
    in_view = shown.gathered[shown.gathered.confidence >= look.min_confidence]
    path = camera_path.cameras(
        options.path, scene, in_view.points, moments,
        options.height * SUPERSAMPLE, options.width * SUPERSAMPLE,
    )  # fmt: skip
    still_colours = palette.of(shown.gathered, colour)
    background = np.array(BACKGROUNDS[options.background], np.uint8)
    marks = options.cameras and options.path != "recorded"
    trace = _trace(scene) if marks else _Marks.none()
    before, parts = -1, []
    for moment, camera in zip(moments, path):
        t = int(moment)
        if t != before:
            parts = _frame_parts(shown, look, colour, palette, still_colours, t, options.point_size)
            parts += [trace, _recorded_camera(scene, t)] if marks else []
            whole = _join(parts)
            before = t
        large, _ = splat.draw(whole.points, whole.sizes, whole.colours, camera, background)
        yield cv2.resize(large, (options.width, options.height), interpolation=cv2.INTER_AREA)


def write(
    path: Path,
    shown: layers.Layers,
    look: layers.Look,
    colour: layers.Colour,
    options: Options,
    progress: Callable[[Iterator[np.ndarray], int], Iterator[np.ndarray]] = lambda it, total: it,
) -> int:
    """Writes the video (H.264 in mp4: plays in every browser); returns the number of pictures.

    progress: wraps the pictures, for a bar. Raises UserError if the file cannot be written; an
    interrupted run leaves no half file.
    """
    count = len(schedule(shown.scene, options))
    pictures = progress(render(shown, look, colour, options), count)
    with atomic.told_to_user(path), atomic.replacing(path) as temporary:
        preview.write_mp4(temporary, pictures, options.fps)
    return count


def schedule(scene: Scene, options: Options) -> np.ndarray:
    """Returns the moment of the video at every picture (`camera_path.moments`)."""
    return camera_path.moments(
        options.path, len(scene.depth), preview.playback_rate(scene.times), options.fps,
        options.seconds, options.speed,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Marks:
    """points: (N, 3) world. sizes: (N,) scene units. colours: (N, 3) uint8."""

    points: np.ndarray
    sizes: np.ndarray
    colours: np.ndarray

    @staticmethod
    def none() -> _Marks:
        return _Marks(np.zeros((0, 3), np.float32), np.zeros(0, np.float32),
                      np.zeros((0, 3), np.uint8))  # fmt: skip


def _fields(marks: _Marks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return marks.points, marks.sizes, marks.colours


def _frame_parts(shown, look, colour, palette, still_colours, t, point_size) -> list[_Marks]:
    """The scene's own points at frame t."""
    current = shown.current(look, t)
    parts = [_Marks(current.points, current.size * COVER * point_size, palette.of(current, colour))]
    if look.gather != "frame":
        visible = layers.shown(shown.gathered, look, t)
        still = shown.gathered[visible]
        parts.append(_Marks(still.points, still.size * COVER * point_size, still_colours[visible]))
    return parts


def _trace(scene: Scene) -> _Marks:
    """The way of the camera, blue at the start and red at the end."""
    centres = np.asarray(scene.world_from_cam, np.float64)[:, :3, 3]
    colours = gltf.camera_colours(len(centres))
    if len(centres) < 2:
        return _Marks.none()
    size = FRUSTUM * gltf.frustum_size(scene)
    return _join([_line(a, b, c, size) for a, b, c in zip(centres, centres[1:], colours[1:])])


def _recorded_camera(scene: Scene, t: int) -> _Marks:
    """The frustum of frame t with its picture in it."""
    size = FRUSTUM * gltf.frustum_size(scene)
    corners = gltf.frusta(scene, size)[t].astype(np.float64)
    colour = gltf.camera_colours(len(scene.depth))[t]
    edges = [_line(corners[a], corners[b], colour, size) for a, b in gltf.FRUSTUM_EDGES]
    picture = np.asarray(scene.colours[t])
    shrunk = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    rows, columns = shrunk.shape[:2]
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns,
                       indexing="ij")  # fmt: skip
    top_left, right, down = corners[1], corners[2] - corners[1], corners[4] - corners[1]
    points = top_left + x.reshape(-1, 1) * right + y.reshape(-1, 1) * down
    sizes = np.full(len(points), 1.7 * np.linalg.norm(right) / columns)
    plane = _Marks(points.astype(np.float32), sizes.astype(np.float32), shrunk.reshape(-1, 3))
    return _join([*edges, plane])


def _line(start: np.ndarray, end: np.ndarray, colour: np.ndarray, size: float) -> _Marks:
    """A line as points, 1/35 of `size` thick."""
    thick = size / 35
    count = int(np.ceil(2 * np.linalg.norm(end - start) / thick)) + 1
    points = start + np.linspace(0, 1, count)[:, None] * (end - start)
    return _Marks(points.astype(np.float32), np.full(count, thick, np.float32),
                  np.tile(np.asarray(colour, np.uint8), (count, 1)))  # fmt: skip


def _join(parts: list[_Marks]) -> _Marks:
    return _Marks(*(np.concatenate(values) for values in zip(*map(_fields, parts))))
