"""Optical flow between frames: OpenCV's DIS or the user's files, with consistency weights.

A flow source answers `directed(frames, pairs)`. Frames more than one step apart are joined by
composing the flows of neighbours, which holds on longer than matching them directly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from align3r_jax.config import FlowConfig
from align3r_jax.errors import UserError
from align3r_jax.io import flow_files
from align3r_jax.structs import Frames, OpticalFlow

_KEPT_FIELDS = 160  # flows between neighbours that DIS remembers; long videos have more
_MIN_DIS_SIDE = 12  # OpenCV's DIS raises on smaller images


class FlowSource(Protocol):
    """Anything that gives flow between frames of one video."""

    name: str

    def directed(self, frames: Frames, pairs: np.ndarray) -> OpticalFlow:
        """Returns the flow of each directed pair.

        pairs: (D, 2) int, (source, target) frames. The result has flow (D, H, W, 2) float32 in
        pixels of the working size and weight (D, H, W) float32 in [0, 1].
        """
        ...

    def sharpest(self) -> FlowSource:
        """Returns the same source at its best quality (itself if it has but one)."""
        ...


def make_source(config: FlowConfig, frames: Frames) -> FlowSource | None:
    """Returns the flow source that `config.source` names; None for "none".

    Raises UserError if the name is unknown, the folder is missing or the frames are too small.
    """
    if config.source == "none":
        return None
    if config.source == "dis":
        if min(frames.images.shape[1:3]) < _MIN_DIS_SIDE:
            raise UserError(
                f"Optical flow needs frames of at least {_MIN_DIS_SIDE} pixels a side, got "
                f"{frames.images.shape[2]}x{frames.images.shape[1]}; use larger frames or "
                "--flow=none."
            )
        return DisFlow(config)
    if config.source.startswith("files:"):
        return FlowFiles(config, Path(config.source.removeprefix("files:")))
    raise UserError(f"Flow source '{config.source}' is unknown; use dis, files:DIR or none.")


def sample(field: np.ndarray, xy: np.ndarray, outside: str = "zero") -> np.ndarray:
    """Bilinear samples of a field at pixel positions (pixel centres at integers).

    field: (H, W, C) float32. xy: (..., 2). Corners outside the field count as 0 (`outside`
    "zero") or as the nearest border value ("replicate"). Returns (..., C) float32.
    """
    height, width, channels = field.shape
    if outside == "replicate":
        xy = np.clip(xy, 0, np.array([width - 1, height - 1], xy.dtype))
    # A border of zeros all round: whatever lies further out falls on it.
    flat = np.pad(field, ((1, 2), (1, 2), (0, 0))).reshape(-1, channels)
    xy = np.clip(np.nan_to_num(xy, nan=-1.0), -1, np.array([width, height], xy.dtype))
    base = np.floor(xy).astype(np.int32)
    right, down = np.moveaxis((xy - base).astype(np.float32)[..., None], -2, 0)
    index = (base[..., 1] + 1) * (width + 3) + base[..., 0] + 1
    upper = flat[index] * (1 - right) + flat[index + 1] * right
    index += width + 3
    lower = flat[index] * (1 - right) + flat[index + 1] * right
    return upper * (1 - down) + lower * down


def pixel_grid(height: int, width: int) -> np.ndarray:
    """Returns (H, W, 2) float32: the (x, y) of every pixel."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)


def inconsistency(flow12: np.ndarray, flow21: np.ndarray, rule: str = "norm") -> np.ndarray:
    """How far a pixel lands from itself when it follows flow12, then flow21, in pixels.

    e(p) = flow21(p + flow12(p)) + flow12(p); |e_x + e_y| for rule "reference" (Align3R's
    masks, in which opposite errors cancel), ||e|| for "norm". Flows (H, W, 2); returns (H, W).
    """
    target = pixel_grid(*flow12.shape[:2]) + flow12
    error = sample(flow21, target) + flow12
    if rule == "reference":
        return np.abs(error.sum(-1))  # parity: the absolute value of the sum, not a norm
    if rule == "norm":
        return np.linalg.norm(error, axis=-1)
    raise ValueError(f"Consistency rule must be 'reference' or 'norm', got '{rule}'.")


def in_bounds(flow: np.ndarray) -> np.ndarray:
    """Returns (H, W) bool: p + flow(p) lies on the image."""
    height, width = flow.shape[:2]
    target = pixel_grid(height, width) + flow
    x, y = target[..., 0], target[..., 1]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def consistency(
    flow12: np.ndarray, flow21: np.ndarray, threshold: float, rule: str = "norm"
) -> np.ndarray:
    """Pixels of frame 1 that come back within `threshold` pixels and stay on the image.

    flow12, flow21: (H, W, 2) pixels. rule: see `inconsistency`. Returns (H, W) bool.
    """
    return (inconsistency(flow12, flow21, rule) < threshold) & in_bounds(flow12)


def compose(flow12: np.ndarray, flow23: np.ndarray) -> np.ndarray:
    """f13(p) = f12(p) + f23(p + f12(p)), bilinear, border replicated. (H, W, 2) each."""
    target = pixel_grid(*flow12.shape[:2]) + flow12
    # Typed without None, which means: map1 holds both coordinates.
    moved = cv2.remap(  # type: ignore[call-overload]
        flow23, target, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return flow12 + moved


def weigh(
    flows: dict[tuple[int, int], np.ndarray], pairs: np.ndarray, config: FlowConfig, name: str
) -> OpticalFlow:
    """Gathers the fields of `pairs` and weighs their pixels by forward-backward consistency.

    flows: (source, target) -> (H, W, 2), both directions of every pair. Fields of which less
    than `config.min_consistent` is consistent weigh 0 altogether.
    """
    weights = []
    for i, j in pairs.tolist():
        trusted = consistency(flows[i, j], flows[j, i], config.consistency_px, config.consistency)
        weights.append(trusted & (trusted.mean() >= config.min_consistent))
    return OpticalFlow(
        pairs=np.asarray(pairs, np.int32),
        flow=np.nan_to_num(np.stack([flows[tuple(pair)] for pair in pairs.tolist()])),
        weight=np.stack(weights).astype(np.float32),
        name=name,
    )


class DisFlow:
    """OpenCV's dense inverse search between neighbours, composed for pairs further apart.

    A composition drifts, a search over a long way gets lost: where the frames still look alike
    a search that starts from the composition keeps more pixels consistent, and then it is used.
    """

    name = "dis"

    def __init__(self, config: FlowConfig):
        self._config = config
        self._images: np.ndarray | None = None
        self._grey: list[np.ndarray] = []
        self._neighbours: dict[tuple[int, int], np.ndarray] = {}

    def sharpest(self) -> DisFlow:
        return DisFlow(dataclasses.replace(self._config, quality="high"))

    def directed(self, frames: Frames, pairs: np.ndarray) -> OpticalFlow:
        if self._images is not frames.images:
            # A new matcher for every video: OpenCV 5 crashes when one that has run is changed.
            self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
            if self._config.quality == "high":
                self._dis.setFinestScale(0)
            self._images, self._neighbours = frames.images, {}
            self._grey = [
                cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY) for image in frames.images
            ]
        flows = _composed(both_ways(pairs), self._neighbour)
        for i, j in both_ways(pairs):
            if i < j and j - i > 1:
                self._refine(flows, i, j)
        return weigh(flows, pairs, self._config, self.name)

    def _neighbour(self, i: int, j: int) -> np.ndarray:
        field = self._neighbours.pop((i, j), None)
        if field is None:
            # Typed without None, which means: no flow to start from.
            field = self._dis.calc(  # type: ignore[call-overload]
                self._grey[i], self._grey[j], None
            )
        self._neighbours[i, j] = field  # the last one used is the last to be forgotten
        if len(self._neighbours) > _KEPT_FIELDS:
            del self._neighbours[next(iter(self._neighbours))]
        return field

    def _refine(self, flows: dict[tuple[int, int], np.ndarray], i: int, j: int) -> None:
        """Replaces both flows between i and j by searches started from them if that helps."""
        there = self._dis.calc(self._grey[i], self._grey[j], flows[i, j].copy())
        back = self._dis.calc(self._grey[j], self._grey[i], flows[j, i].copy())
        threshold = self._config.consistency_px
        before = consistency(flows[i, j], flows[j, i], threshold).mean()
        if consistency(there, back, threshold).mean() >= before:
            flows[i, j], flows[j, i] = there, back


class FlowFiles:
    """The user's flow fields, `<i>_<j>.flo` and so on (`io.flow_files`), in both directions.

    Fields between frames further apart that are missing are composed of those between neighbours.
    """

    def __init__(self, config: FlowConfig, folder: Path):
        if not folder.is_dir():
            raise UserError(
                f"The flow folder '{folder}' does not exist; --flow=files:DIR needs a folder."
            )
        self._config = config
        self._folder = folder
        self.name = f"files:{folder}"

    def sharpest(self) -> FlowFiles:
        return self

    def directed(self, frames: Frames, pairs: np.ndarray) -> OpticalFlow:
        flows = {}
        for i, j in both_ways(pairs):
            path = flow_files.find_flow(self._folder, i, j, frames.names)
            if path is not None:
                flows[i, j] = self._read(path, frames)
        missing = [pair for pair in both_ways(pairs) if pair not in flows]
        flows |= _composed(missing, lambda i, j: self._neighbour(i, j, frames))
        return weigh(flows, pairs, self._config, self.name)

    def _neighbour(self, i: int, j: int, frames: Frames) -> np.ndarray:
        path = flow_files.find_flow(self._folder, i, j, frames.names)
        if path is None:
            raise UserError(
                f"The flow from frame {i} to {j} is missing in '{self._folder}': expected {i}_{j}"
                f"{' or '.join(flow_files.SUFFIXES)}. Both directions are needed."
            )
        return self._read(path, frames)

    def _read(self, path: Path, frames: Frames) -> np.ndarray:
        flow = flow_files.read_flow(path)
        if flow.shape[:2] == frames.size.working:
            return flow
        if _shows_whole_frame(flow.shape[:2], frames.size.original):
            return flow_files.to_working_size(flow, frames.size)
        raise UserError(
            f"The flow file '{path}' is {flow.shape[1]}x{flow.shape[0]}; expected the size of the "
            f"video, {frames.size.original[1]}x{frames.size.original[0]}, one of the same "
            "proportions, or the working size, "
            f"{frames.size.working[1]}x{frames.size.working[0]}."
        )


def _shows_whole_frame(shape: tuple[int, ...], original: tuple[int, int]) -> bool:
    """Whether a field has the proportions of the frames, up to the rounding of its sides."""
    (height, width), (height0, width0) = shape, original
    return abs(height * width0 - width * height0) <= max(height0, width0)


def both_ways(pairs: np.ndarray) -> list[tuple[int, int]]:
    """Every directed pair and its reverse, once, sorted."""
    given = {tuple(pair) for pair in np.asarray(pairs).tolist()}
    return sorted(given | {(j, i) for i, j in given})


def _composed(
    pairs: list[tuple[int, int]], neighbour: Callable[[int, int], np.ndarray]
) -> dict[tuple[int, int], np.ndarray]:
    """Walks from every source over its neighbours' flows; returns the flows of `pairs`."""
    wanted = set(pairs)
    flows = {}
    for source in sorted({i for i, _ in pairs}):
        for step in (1, -1):
            length = max([(j - i) * step for i, j in pairs if i == source], default=0)
            flow = None
            for j in range(source, source + step * length, step):
                following = neighbour(j, j + step)
                flow = following if flow is None else compose(flow, following)
                if (source, j + step) in wanted:
                    flows[source, j + step] = flow
    return flows
