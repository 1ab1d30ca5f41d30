"""Cameras of a clip from its flow: start, bundle, window by window if the clip is long.

Short clips (and the busiest stretch of long ones) are solved from many starts at once. The other
frames join in overlapping windows, each solved on its own and moved to where its neighbour ends;
a last bundle takes all frames together. The cost is linear in the number of frames.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from align3r_jax.predictors import flow_bundle, flow_motion, flow_start
from align3r_jax.predictors.flow_lattice import Observations, Structure
from align3r_jax.predictors.flow_normal import BundleConfig

SCALES_PX = (0.5, 0.25, 0.12)  # the robust loss, sharpened step by step
_LEAN = 0.01  # depth weight per pixel of the loss's scale
_WINDOW = 24  # frames solved together
_FINALISTS = 2  # starts that are followed to the sharpest loss
_ADVANCE = 16  # frames by which windows move on


def solve(
    obs: Observations, prior: np.ndarray | None, focals: list[float], config: BundleConfig
) -> Structure:
    """Finds cameras, focal and rough depth of all frames.

    prior: (T, P) log inverse depth in any scale per frame, NaN where unknown, or None.
    focals: where to start, pixels.
    Returns the structure on the lattice of `obs`.
    """
    frames = len(obs.neighbour)
    lean = np.zeros((frames, len(obs.xy)))
    if prior is not None:
        for own, given in zip(lean, prior):
            known = np.isfinite(given)
            own[known] = given[known] - np.median(given[known]) if known.any() else 0
    # What every round of a window needs: both lattices and where to find them in the full one.
    coarse, middle = thin(obs, 4), thin(obs, 2)
    first, last = _busiest(coarse[0])
    whole = Structure(
        np.tile(np.eye(3), (frames, 1, 1)), np.zeros((frames, 3)), lean[:, middle[1]], focals[0]
    )

    def solve_window(window, focals, config, seeds):
        part, cells = crop(coarse[0], window), lean[window][:, coarse[1]]
        starts = flow_start.candidates(
            part, None if prior is None else cells, focals, seeds=seeds, minima=3
        )
        quick = dataclasses.replace(config, tolerance=1e-3)
        best = flow_start.best_starts(starts, part, cells, quick, _FINALISTS)
        part, cells = crop(middle[0], window), lean[window][:, middle[1]]
        finals = []
        for start in best:
            log_rho = resize(start.log_rho, coarse[0].lattice, middle[0].lattice)
            start = dataclasses.replace(start, log_rho=log_rho)
            finals.append(_sharpen(start, part, cells, SCALES_PX, config))
        last_config = sharp(config, SCALES_PX[-1])
        found, still = min(
            finals, key=lambda final: flow_bundle.cost(final[0], part, cells, last_config)
        )
        middle[0].weight[window] *= still[:, None]  # thinning has made a copy
        return found

    whole = _insert(whole, solve_window(slice(first, last), focals, config, 2), slice(first, last))
    config = dataclasses.replace(config, focal_prior=whole.focal, focal_weight=1.0)
    for window, known in _windows(first, last, frames):
        found = solve_window(window, [whole.focal], config, 1)
        whole = _insert(whole, _join(found, whole, window, known), window)
    if last - first < frames:
        for scale in SCALES_PX[1:]:
            whole, _ = flow_bundle.bundle(whole, middle[0], whole.log_rho, sharp(config, scale))
    return dataclasses.replace(whole, log_rho=resize(whole.log_rho, middle[0].lattice, obs.lattice))


def refine(structure: Structure, obs: Observations, config: BundleConfig) -> Structure:
    """Bundles once more at the sharpest loss, leaning on the depth of `structure`."""
    middle, cells = thin(obs, 2)
    start = dataclasses.replace(structure, log_rho=structure.log_rho[:, cells])
    refined, _ = flow_bundle.bundle(start, middle, start.log_rho, sharp(config, SCALES_PX[-1]))
    return dataclasses.replace(
        refined, log_rho=resize(refined.log_rho, middle.lattice, obs.lattice)
    )


def _sharpen(
    structure: Structure,
    obs: Observations,
    lean: np.ndarray,
    scales: tuple[float, ...],
    config: BundleConfig,
) -> tuple[Structure, np.ndarray]:
    """Bundles at one scale after the other, each time without what was seen to move before.

    Returns the structure and (T, P) the cells that stand still.
    """
    still = np.ones(structure.log_rho.shape, np.float32)
    for scale in scales:
        seen = dataclasses.replace(obs, weight=obs.weight * still[:, None])
        structure, _ = flow_bundle.bundle(structure, seen, lean, sharp(config, scale))
        still = flow_motion.still_cells(flow_motion.motion_score(structure, obs, 0.0), obs.lattice)
    return structure, still


def sharp(config: BundleConfig, scale: float) -> BundleConfig:
    """The config for one scale of the robust loss."""
    return dataclasses.replace(config, scale_px=scale, depth_weight=_LEAN * scale, iterations=10)


def thin(obs: Observations, step: int) -> tuple[Observations, np.ndarray]:
    """Every `step`-th pixel of the lattice along both axes, and which (indices)."""
    rows, columns = obs.lattice
    grid = np.arange(rows * columns).reshape(rows, columns)[step // 2 :: step, step // 2 :: step]
    keep = grid.ravel()
    thinned = Observations(
        obs.neighbour, obs.xy[keep], obs.target[:, :, keep], obs.weight[:, :, keep], grid.shape
    )
    return thinned, keep


def crop(obs: Observations, window: slice) -> Observations:
    """The frames of a window, blind to all others."""
    first, last, _ = window.indices(len(obs.neighbour))
    own = np.arange(last - first)[:, None]
    neighbour = obs.neighbour[window] - first
    outside = (neighbour < 0) | (neighbour >= last - first)
    used = np.asarray(~outside.all(0))
    used[0] = True  # at least one slot
    return dataclasses.replace(
        obs,
        neighbour=np.where(outside, own, neighbour)[:, used],
        target=obs.target[window][:, used],
        weight=np.where(outside[..., None], 0, obs.weight[window])[:, used],
    )


def resize(values: np.ndarray, lattice: tuple[int, int], wanted: tuple[int, int]) -> np.ndarray:
    """(T, P) on one lattice -> (T, Q) on another, bilinear."""
    return np.stack(
        [
            cv2.resize(frame.reshape(lattice).astype(np.float32), wanted[::-1]).ravel()
            for frame in values
        ]
    )


def _busiest(obs: Observations) -> tuple[int, int]:
    """First and last frame (exclusive) of the window around the pair with most trusted motion."""
    frames = len(obs.neighbour)
    if frames <= _WINDOW + _ADVANCE // 2:
        return 0, frames
    seeds = flow_start.seed_pairs(obs, 1)
    middle = seeds[0][0] if seeds else frames // 2
    first = int(np.clip(middle - _WINDOW // 2, 0, frames - _WINDOW))
    return first, first + _WINDOW


def _windows(first: int, last: int, frames: int) -> list[tuple[slice, slice]]:
    """The windows that lead from [first, last) to both ends, and what each shares with those
    before it."""
    found = []
    while last < frames:
        end = min(last + _ADVANCE, frames)
        found.append((slice(end - _WINDOW, end), slice(max(first, end - _WINDOW), last)))
        last = end
    while first > 0:
        begin = max(first - _ADVANCE, 0)
        found.append((slice(begin, begin + _WINDOW), slice(first, begin + _WINDOW)))
        first = begin
    return found


def _join(part: Structure, whole: Structure, window: slice, known: slice) -> Structure:
    """Moves a window's own solution to where the frames that it shares with the rest lie.

    Scale from the median ratio of depths, rotation nearest to all (Procrustes), mean translation.
    """
    shared = slice(known.start - window.start, known.stop - window.start)
    log_scale = np.median(part.log_rho[shared] - whole.log_rho[known])
    turns = whole.rotation[known] @ np.swapaxes(part.rotation[shared], -1, -2)
    u, _, vt = np.linalg.svd(turns.sum(0))
    turn = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    translation = np.exp(log_scale) * part.translation @ turn.T
    shift = (whole.translation[known] - translation[shared]).mean(0)
    return Structure(
        turn @ part.rotation, translation + shift, part.log_rho - log_scale, part.focal
    )


def _insert(whole: Structure, part: Structure, window: slice) -> Structure:
    rotation, translation = whole.rotation.copy(), whole.translation.copy()
    log_rho = whole.log_rho.copy()
    rotation[window], translation[window] = part.rotation, part.translation
    log_rho[window] = part.log_rho
    return Structure(rotation, translation, log_rho, part.focal)
