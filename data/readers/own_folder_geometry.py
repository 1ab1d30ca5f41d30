"""Do depth, poses and pictures of a scene fit together? Frames brought into each other tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align3r_jax.io import images
from data.readers import own_folder_files, poses

_PAIRS = 6  # spread over the scene
_APART = (10, 4, 1)  # frames of a pair: far for parallax, nearer if the views overlap too little
_OVERLAP = 0.5  # share of the points that the other frame sees
_POINTS = 4000  # of a frame
_FEWEST_POINTS = 50
_LEAST_OVERLAP = 0.2
_DEPTH_LIMIT, _GREY_LIMIT = 0.3, 50.0  # of ln z and of 255; beyond, a point counts as wrong
_DISAGREE = 0.1  # median share of z
_BETTER, _WORTH = 0.6, 0.15  # another reading must cost less than this share, of at least that much
_FAR_TOO_LONG = 1e4  # depth over the way of the camera


class Frame(NamedTuple):
    """intrinsics: (3, 3) pixels of the picture. world_from_cam: (4, 4), rigid."""

    name: str
    picture: Path
    depth: Path
    intrinsics: np.ndarray
    world_from_cam: np.ndarray


class _Loaded(NamedTuple):
    grey: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    world_from_cam: np.ndarray


_Reading = Callable[[_Loaded], _Loaded]


def _scaled(factor: float) -> _Reading:
    return lambda frame: frame._replace(depth=frame.depth * np.float32(factor))


# How the same files could be meant, and the sentence for that.
_READINGS: dict[str, _Reading] = {
    f"depth is multiplied by {factor:g}": _scaled(factor)
    for factor in (1e-3, 1e-2, 1e-1, 10.0, 100.0, 1000.0)
} | {
    "the poses are cam_from_world": lambda frame: frame._replace(
        world_from_cam=np.linalg.inv(frame.world_from_cam)
    ),
    "the cameras have OpenGL axes (y up, z backwards)": lambda frame: frame._replace(
        world_from_cam=poses.from_blender(frame.world_from_cam)
    ),
    "depth is inverse (larger is nearer)": lambda frame: frame._replace(
        depth=np.where(frame.depth > 0, 1 / np.maximum(frame.depth, 1e-9), 0)
    ),
}


def disagreements(frames: Sequence[Frame]) -> list[str]:
    """Returns what is suspicious about a scene of two frames or more, as sentences.

    The points of a frame are projected into another: their z is compared with the depth there
    (median of |z' - z| / z), their grey with the grey there. If one of the usual mistakes, undone,
    makes both agree much better, it is named. Moving things and hidden surfaces are outvoted.
    """
    for step in sorted({min(apart, len(frames) - 1) for apart in _APART}, reverse=True):
        starts = np.unique(np.linspace(0, len(frames) - 1 - step, _PAIRS).round().astype(int))
        pairs = [(_load(frames[k]), _load(frames[k + step])) for k in starts]
        if np.median([_compare(*pair).overlap for pair in pairs]) > _OVERLAP:
            break
    sentences = []
    depth = float(np.median([np.median(one.depth[one.depth > 0]) for one, _ in pairs]))
    moved = float(
        np.median([np.linalg.norm((a.world_from_cam - b.world_from_cam)[:3, 3]) for a, b in pairs])
    )
    if 0 < moved * _FAR_TOO_LONG < depth:
        sentences.append(
            f"depth is about {depth:.3g}, the camera moves by {moved:.3g} in {step} frames: are "
            "both of one unit?"
        )
    costs, errors = _cost(pairs, lambda frame: frame)
    others = {name: _cost(pairs, reading)[0] for name, reading in _READINGS.items()}
    best = min(others, key=lambda name: others[name])
    if costs > _WORTH and others[best] < _BETTER * costs:
        sentences.append(
            f"frames {step} apart fit much better if {best} (cost {others[best]:.2f} instead of "
            f"{costs:.2f})"
        )
    elif not np.isfinite(errors):
        sentences.append(f"frames {step} apart see nothing of each other, by their poses and depth")
    elif errors > _DISAGREE:
        sentences.append(
            f"depth brought from a frame into the one {step} later differs from the depth there by "
            f"{100 * errors:.0f} % (median): depth, poses and intrinsics do not fit together"
        )
    return sentences


def _load(frame: Frame) -> _Loaded:
    image = images.load_image(frame.picture).astype(np.float32)
    depth = own_folder_files.read_depth(frame.depth)
    depth = np.where(np.isfinite(depth), depth, np.float32(0))
    return _Loaded(image.mean(-1), depth, frame.intrinsics, frame.world_from_cam)


def _cost(pairs: Sequence[tuple[_Loaded, _Loaded]], read: _Reading) -> tuple[float, float]:
    """Returns the mean cost of a point, 0 to 2, and the median relative error of z (NaN: none)."""
    costs, errors = [], []
    for pair in pairs:
        compared = _compare(read(pair[0]), read(pair[1]))
        costs.append(compared.cost)
        errors += [compared.error] if np.isfinite(compared.error) else []
    return float(np.mean(costs)), float(np.median(errors)) if errors else np.nan


class _Comparison(NamedTuple):
    """cost: mean of a point, 0 to 2. error: median of |z' - z| / z, NaN without points. overlap:
    share of the points that fall onto known depth."""

    cost: float
    error: float
    overlap: float


def _compare(first: _Loaded, second: _Loaded) -> _Comparison:
    rows, columns = np.nonzero(first.depth > 0)
    every = max(len(rows) // _POINTS, 1)
    rows, columns = rows[::every], columns[::every]
    z = first.depth[rows, columns].astype(np.float64)
    pixels = np.stack([columns, rows, np.ones(len(rows))], -1)
    points = pixels @ np.linalg.inv(first.intrinsics).T * z[:, None]
    step = np.linalg.inv(second.world_from_cam) @ first.world_from_cam
    points = points @ step[:3, :3].T + step[:3, 3]
    front = points[:, 2] > 0
    seen = points[front] @ second.intrinsics.T
    x, y = np.round(seen[:, :2] / seen[:, 2:]).T
    height, width = second.depth.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x[inside].astype(int), y[inside].astype(int)
    there = second.depth[y, x]
    known = there > 0
    overlap = known.sum() / len(rows)
    if known.sum() < _FEWEST_POINTS:
        return _Comparison(2.0, np.nan, overlap)
    expected, there = points[front][inside][known, 2], there[known]
    source = first.grey[rows, columns][front][inside][known]
    grey = np.abs(source - second.grey[y, x][known]) / _GREY_LIMIT
    ratio = np.abs(np.log(expected / there)) / _DEPTH_LIMIT
    cost = np.minimum(ratio, 1) + np.minimum(grey, 1)
    error = float(np.median(np.abs(expected - there) / there))
    # What falls outside or onto unknown depth says nothing, unless that is what most points do.
    return _Comparison(float(cost.mean()) if overlap > _LEAST_OVERLAP else 2.0, error, overlap)
