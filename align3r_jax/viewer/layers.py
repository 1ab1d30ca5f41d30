"""What the viewers show of a scene: pixels as points with what is known of each, chosen by a look.

Which pixels may become points at all is decided by `io.pointcloud`; a `Look` chooses among those
without touching the scene again, so that sliders answer at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, get_args

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import gltf, pointcloud, preview
from align3r_jax.structs import Scene

Motion = Literal["all", "static", "moving"]
Gather = Literal["all", "past", "frame"]
Colour = Literal["image", "depth", "confidence", "motion", "time"]
MOTIONS: tuple[Motion, ...] = get_args(Motion)
GATHERS: tuple[Gather, ...] = get_args(Gather)
COLOURS: tuple[Colour, ...] = get_args(Colour)

SPARSE = 3.0  # points drawn from many pixels grow by no more than this
_CACHED_FRAMES = 32


@dataclasses.dataclass(frozen=True)
class Look:
    """Which points are shown at frame t.

    min_confidence: those of lower confidence are hidden, but not moving ones of confidence 0: that
    only says that other frames see through them, and so they must once the thing is gone.
    motion: of what stands still, what moves by itself, or both. gather: what stands still is shown
    from all frames, from those up to t ("past"), or from t alone ("frame"); what moves is shown at
    its own frame only, since it smears otherwise.
    """

    min_confidence: float = pointcloud.PointFilter.min_confidence
    motion: Motion = "all"
    gather: Gather = "all"


@dataclasses.dataclass(frozen=True)
class Sample:
    """Pixels as points, ascending by frame.

    points: (N, 3) float32, world. size: (N,) float32, the side of a point in scene units that
    covers its pixel. confidence: (N,) float32. moving: (N,) bool. frame, pixel: (N,) int32, the
    frame and the row-major number of the pixel in it.
    """

    points: np.ndarray
    size: np.ndarray
    confidence: np.ndarray
    moving: np.ndarray
    frame: np.ndarray
    pixel: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, chosen: np.ndarray | slice) -> Sample:
        """The chosen points: (N,) bool, their numbers, or a slice."""
        return Sample(**{name: values[chosen] for name, values in vars(self).items()})


def part(scene: Scene, start: int = 0, end: int | None = None, stride: int = 1) -> Scene:
    """Returns the frames start, start + stride, ... before `end` of a scene (None: to its last).

    Raises UserError if none are left.
    """
    frames = np.arange(len(scene.depth))[start:end:stride]
    if not len(frames):
        raise UserError(
            f"Of {len(scene.depth)} frames, none is left between --start={start} and "
            f"--end={'the last' if end is None else end}; the first is 0."
        )
    chosen: dict[str, Any] = {
        name: np.asarray(getattr(scene, name))[frames] for name in (*_PER_FRAME, "times")
    }
    return dataclasses.replace(scene, names=tuple(scene.names[t] for t in frames), **chosen)


def take(scene: Scene, rules: pointcloud.PointFilter) -> Sample:
    """Returns the pixels that `rules` let in as points.

    Where `rules.max_points` leaves pixels out, the points grow by the fourth root of
    (pixels / points), up to `SPARSE` times: the square root would close surfaces that one frame
    alone shows; those that all frames show stay closed without growing.
    """
    chosen = dict(pointcloud.sampled_pixels(scene, rules))
    count = sum(map(len, chosen.values()))
    allowed = int(pointcloud.kept_pixels(scene, rules).sum())
    growth = min((allowed / max(count, 1)) ** 0.25, SPARSE)
    parts = [_frame(scene, t, pixels, growth) for t, pixels in chosen.items()]
    return join(parts) if parts else _frame(scene, 0, np.zeros(0, int), 1.0)


def take_frame(scene: Scene, t: int, rules: pointcloud.PointFilter) -> Sample:
    """Returns the pixels of frame t that `rules` let in, as `take`."""
    only = {name: getattr(scene, name)[t : t + 1] for name in _PER_FRAME}
    sample = take(dataclasses.replace(scene, **only), rules)
    return dataclasses.replace(sample, frame=np.full(len(sample), t, np.int32))


def join(parts: list[Sample]) -> Sample:
    """Returns the points of all parts (at least one), ascending by frame."""
    whole = Sample(*(np.concatenate([getattr(p, name) for p in parts]) for name in _FIELDS))
    return whole[np.argsort(whole.frame, kind="stable")]


def shown(sample: Sample, look: Look, t: int) -> np.ndarray:
    """Returns (N,) bool: the points that are seen at frame t."""
    visible = sample.confidence >= look.min_confidence
    visible |= sample.moving & (sample.confidence == 0)
    if look.motion != "all":
        visible &= sample.moving == (look.motion == "moving")
    if look.gather == "frame":
        return visible & (sample.frame == t)
    static = sample.frame <= t if look.gather == "past" else True
    return visible & np.where(sample.moving, sample.frame == t, static)


class Layers:
    """A scene as the viewers draw it: points gathered from all frames, and all pixels of one.

    rules: which pixels may become points; its `max_points` is the number of gathered points, its
    `min_confidence` and `dynamic` are left to the looks.
    """

    def __init__(self, scene: Scene, rules: pointcloud.PointFilter) -> None:
        self.scene = scene
        rules = dataclasses.replace(rules, min_confidence=-math.inf)
        self._rules = dataclasses.replace(rules, dynamic="keep", max_points=None)
        self.gathered = take(scene, dataclasses.replace(rules, dynamic="drop"))
        self._frame = functools.lru_cache(maxsize=_CACHED_FRAMES)(self._take)

    def still(self, look: Look, t: int) -> Sample:
        """Returns the gathered points that frame t shows; none if each frame stands alone."""
        if look.gather == "frame":
            return self.gathered[:0]
        return self.gathered[shown(self.gathered, look, t)]

    def current(self, look: Look, t: int) -> Sample:
        """Returns the pixels of frame t that are shown beside the gathered points."""
        sample = self._frame(t)
        visible = shown(sample, look, t)
        return sample[visible if look.gather == "frame" else visible & sample.moving]

    def _take(self, t: int) -> Sample:
        return take_frame(self.scene, t, self._rules)


class Palette:
    """The colours of a scene's pixels: one scale for all frames.

    image: the video's own. depth: inverse depth, near is bright. confidence: its logarithm, sure is
    bright. motion: what moves is red. time: blue at the first frame, red at the last.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._depth_range = preview.inverse_depth_range(np.asarray(scene.depth))
        self._times = gltf.camera_colours(len(scene.depth))
        self._sure = confidence_range(scene)[1]

    def image(self, colour: Colour, t: int) -> np.ndarray:
        """Returns (H, W, 3) uint8: frame t in these colours."""
        scene = self._scene
        picture = np.asarray(scene.colours[t])
        if colour == "image":
            return picture
        if colour == "depth":
            return preview.colour_depth(np.asarray(scene.depth[t]), self._depth_range)
        if colour == "confidence":
            return preview.colour_confidence(np.asarray(scene.confidence[t]), self._sure)
        if colour == "motion":
            return preview.overlay_mask(picture, np.asarray(scene.dynamic_mask[t], bool))
        return np.broadcast_to(self._times[t], picture.shape)

    def of(self, sample: Sample, colour: Colour) -> np.ndarray:
        """Returns (N, 3) uint8: the points' colours."""
        result = np.empty((len(sample), 3), np.uint8)
        bounds = np.searchsorted(sample.frame, np.arange(len(self._scene.depth) + 1))
        for t, (start, end) in enumerate(zip(bounds, bounds[1:])):
            if end > start:
                pixels = sample.pixel[start:end]
                result[start:end] = self.image(colour, t).reshape(-1, 3)[pixels]
        return result


def confidence_range(scene: Scene) -> tuple[float, float]:
    """Returns (lowest, 98th percentile) of the confidence, for sliders; the first is 1 at most."""
    values = np.asarray(scene.confidence).reshape(-1)
    values = values[:: max(1, values.size // 1_000_000)]
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low = min(float(values.min()), 1.0)
    return low, max(float(np.percentile(values, 98)), low + 1e-3)


_FIELDS = tuple(field.name for field in dataclasses.fields(Sample))
_PER_FRAME = ("depth", "world_from_cam", "intrinsics", "confidence", "dynamic_mask", "colours")


def _frame(scene: Scene, t: int, pixels: np.ndarray, growth: float) -> Sample:
    """Pixels of frame t, side = growth * depth / focal length."""

    def per_pixel(name: str) -> np.ndarray:
        return np.asarray(getattr(scene, name)[t]).reshape(-1)[pixels]

    side = growth * per_pixel("depth") / float(scene.intrinsics[t][0, 0])
    return Sample(
        points=pointcloud.frame_points(scene, t)[pixels],
        size=side.astype(np.float32),
        confidence=per_pixel("confidence").astype(np.float32),
        moving=per_pixel("dynamic_mask").astype(bool),
        frame=np.full(len(pixels), t, np.int32),
        pixel=pixels.astype(np.int32),
    )
