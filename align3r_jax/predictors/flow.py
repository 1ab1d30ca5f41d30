"""Point maps without learnt weights: structure and motion of the whole clip from optical flow.

`prepare` samples flow over several frame distances on a lattice, looks for the best start
(`flow_start`), bundles cameras, focal and depth (`flow_bundle`), triangulates and pulls depth to
the prior (`flow_depth`) and finds what moves; `predict` cuts pairs out of that solution.
"""

from __future__ import annotations

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.errors import UserError
from align3r_jax.geometry import camera, rigid
from align3r_jax.predictors import flow_cameras, flow_depth, flow_lattice, flow_motion
from align3r_jax.predictors.flow_bundle import BundleConfig
from align3r_jax.predictors.flow_lattice import Observations
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import DepthPrior, Frames, OpticalFlow, PairGraph, PairPredictions

_OFFSETS = (1, 2, 4, 8, 16)  # frame distances of the flow fields
_LATTICE = 64  # cells along the longer side
_FOCAL_PRIOR = 0.95  # of the longer side, unless the prior knows better
_LOW_PARALLAX_PX = 1.0
_FLAT_GRADIENT = 1.0  # grey levels per pixel; flow of flatter regions is little more than a guess


@struct.dataclass
class FlowState:
    """The clip's solution. depth, confidence, dynamic_mask: (T, H, W); world_from_cam: (T, 4, 4);
    focal: () pixels; parallax: (T,) median pixels by which depth shows in the flow; residual: ()
    median pixels; trusted: () share of flow that is consistent; prior_used: () bool."""

    depth: jax.Array
    confidence: jax.Array
    dynamic_mask: jax.Array
    world_from_cam: jax.Array
    focal: jax.Array
    parallax: jax.Array
    residual: jax.Array
    trusted: jax.Array
    prior_used: jax.Array
    prior_name: str = struct.field(pytree_node=False)


class FlowPredictor:
    """The default predictor: needs optical flow, takes a depth prior if there is one."""

    name = "flow"

    def prepare(
        self, frames: Frames, prior: DepthPrior | None, flow: FlowSource | None
    ) -> FlowState:
        """Solves the clip. Raises UserError without flow or with a single frame."""
        if flow is None:
            raise UserError(
                "The flow predictor needs optical flow, but there is none; use --flow=dis or "
                "--flow=files:DIR."
            )
        if frames.num_frames < 2:
            raise UserError("The flow predictor needs at least two frames, but the video has one.")
        height, width = frames.images.shape[1:3]
        obs, stride = _sample_flow(frames, flow.sharpest())
        prior_log = None if prior is None else _prior_on_lattice(prior, obs, height, width)
        focal_prior = _FOCAL_PRIOR * max(height, width)
        focals = [0.75 * focal_prior, 1.2 * focal_prior]
        config = BundleConfig(focal_prior=focal_prior)
        if prior is not None and prior.focal is not None:
            focal_prior = float(np.nanmedian(np.asarray(prior.focal)))
            focals = [focal_prior]
            config = BundleConfig(focal_prior=focal_prior, focal_weight=0.3)
        inverse = None if prior_log is None else -prior_log
        structure = flow_cameras.solve(obs, inverse, focals, config)
        static = np.ones_like(obs.weight[:, 0])
        for _ in range(2):
            solution = _solve_depth(structure, obs, prior_log, static, frames.images)
            static = flow_motion.still_cells(solution.score, obs.lattice)
            still = dataclasses.replace(obs, weight=obs.weight * static[:, None])
            known = dataclasses.replace(structure, log_rho=-solution.log_depth)
            structure = flow_cameras.refine(known, still, config)
        solution = _solve_depth(structure, obs, prior_log, static, frames.images)
        if not solution.fitted.useful:
            standing = flow_motion.stand_movers(solution.log_depth, static, obs.lattice)
            solution = dataclasses.replace(solution, log_depth=standing)
        return _to_state(structure, obs, solution, static, prior, frames, stride)

    def predict(self, state: FlowState, graph: PairGraph) -> PairPredictions:
        """Returns both frames' points in camera i, the whole clip in one scale."""
        i, j = (jnp.asarray(column) for column in graph.pairs.T)
        return _cut_pairs(state, i, j).check(graph)

    def limits(self, state: FlowState) -> tuple[str, ...]:
        """Returns what a reader of the result should know."""
        said = [
            "Predictor flow: cameras and depth come from optical flow alone, without learnt "
            "weights; focal length and scale are estimates."
        ]
        parallax = float(np.median(state.parallax))
        source = f"the prior's ({state.prior_name})" if state.prior_used else "a smooth guess"
        if parallax < _LOW_PARALLAX_PX:
            said.append(
                f"Low parallax (median {parallax:.1f} px): depth is {source}, and camera "
                "translation is uncertain."
            )
        if float(state.trusted) < 0.5:
            said.append(
                f"Only {100 * float(state.trusted):.0f}% of the flow between neighbouring frames "
                "is consistent (fast motion, blur or cuts): cameras may be wrong."
            )
        if not state.prior_used and state.prior_name not in ("none", "plane"):
            said.append(
                f"The depth prior ({state.prior_name}) fits the triangulated depth no better than "
                "a plane and was left out."
            )
        return tuple(said)


@dataclasses.dataclass(frozen=True)
class _Depth:
    """log_depth, variance, score: (T, P); strength: (T, P) precision of the triangulation alone."""

    log_depth: np.ndarray
    measured_variance: np.ndarray
    variance: np.ndarray
    score: np.ndarray
    fitted: flow_depth.FittedPrior


def _sample_flow(frames: Frames, flow: FlowSource) -> tuple[Observations, int]:
    """Flow over `_OFFSETS` on a lattice; one distance at a time, to keep whole fields few."""
    num, height, width = frames.images.shape[:3]
    stride = max(2, round(max(height, width) / _LATTICE))
    rows, columns = np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride]
    xy = np.stack([columns, rows], -1).reshape(-1, 2)
    principal = np.array([width / 2, height / 2])
    parts = []
    for offset in _OFFSETS:
        if offset < num:
            first = np.arange(num - offset)
            pairs = np.stack([first, first + offset], 1)
            fields: OpticalFlow = flow.directed(frames, np.concatenate([pairs, pairs[:, ::-1]]))
            parts.append(flow_lattice.observe(fields, num, principal, xy, rows.shape))
    texture = np.stack([_texture(image, stride)[xy[:, 1], xy[:, 0]] for image in frames.images])
    obs = dataclasses.replace(
        parts[0],
        neighbour=np.concatenate([part.neighbour for part in parts], 1),
        target=np.concatenate([part.target for part in parts], 1),
        weight=np.concatenate([part.weight for part in parts], 1) * texture[:, None],
    )
    return obs, stride


def _texture(image: np.ndarray, stride: int) -> np.ndarray:
    """l / (l + g^2) in [0, 1], l the smaller eigenvalue of the structure tensor (Shi and Tomasi
    1994): how well the image around a pixel fixes its flow in both directions. Returns (H, W)."""
    grey = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32)
    dx = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8)
    xx, xy, yy = (cv2.GaussianBlur(a, (0, 0), stride) for a in (dx * dx, dx * dy, dy * dy))
    smaller = (xx + yy) / 2 - np.sqrt(np.square(xx - yy) / 4 + xy * xy)
    return np.maximum(smaller, 0) / (np.maximum(smaller, 0) + _FLAT_GRADIENT**2)


def _prior_on_lattice(prior, obs, height, width) -> np.ndarray | None:
    """Log depth of the prior (T, P), missing values filled with the frame's median; None if it
    has no relief or no values."""
    log_depth = _clean_prior(prior)
    if log_depth is None:
        return None
    columns = (obs.xy[:, 0] + width / 2).round().astype(int)
    rows = (obs.xy[:, 1] + height / 2).round().astype(int)
    return log_depth[:, rows, columns]


def _clean_prior(prior: DepthPrior) -> np.ndarray | None:
    depth = np.asarray(prior.depth, np.float32)
    valid = np.isfinite(depth) & (depth > 0)
    if not valid.any():
        return None
    log_depth = np.log(np.where(valid, depth, 1))
    for frame, known in zip(log_depth, valid, strict=True):
        frame[~known] = np.median(frame[known]) if known.any() else 0
    return None if log_depth.std(axis=(1, 2)).max() < 1e-3 else log_depth


def _solve_depth(structure, obs, prior_log, static, images) -> _Depth:
    log_rho, variance = flow_depth.triangulate(
        structure, obs, structure.log_rho, flow_motion.NOISE_PX
    )
    variance = np.where(static > 0, variance, 1e6)
    solved = dataclasses.replace(structure, log_rho=log_rho)
    fitted = flow_depth.fit_prior(-log_rho, variance, prior_log, solved, obs)
    rows, columns = obs.lattice
    brightness = np.stack(
        [
            cv2.resize(
                cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY),
                (columns, rows),
                interpolation=cv2.INTER_AREA,
            )
            for image in images
        ]
    )
    log_depth = flow_depth.regularise(-log_rho, variance, fitted, brightness / 255.0, obs.lattice)
    posterior = variance * fitted.sigma**2 / (variance + fitted.sigma**2)
    solved = dataclasses.replace(structure, log_rho=-log_depth)
    score = flow_motion.motion_score(solved, obs, posterior + 0.05**2)
    return _Depth(log_depth, variance, posterior, score, fitted)


def _to_state(structure, obs, solution, static, prior, frames, stride) -> FlowState:
    num, height, width = frames.images.shape[:3]
    full = None if prior is None or not solution.fitted.useful else _clean_prior(prior)
    depth = np.empty((num, height, width), np.float32)
    confidence = np.empty_like(depth)
    moving = np.empty(depth.shape, bool)
    sure = 1 / (1 + np.sqrt(solution.variance) / 0.1)
    seen = np.minimum(obs.weight.sum(1), 1)
    value = 1 + (2.5 + 6 * sure * (0.5 + 0.5 * seen)) * np.where(static > 0, 1, 0.2)
    for t in range(num):
        log_depth = _upsample(solution.log_depth[t], obs.lattice, (height, width), stride)
        if full is not None:
            coarse = full[t][stride // 2 :: stride, stride // 2 :: stride]
            log_depth += full[t] - _upsample(coarse, obs.lattice, (height, width), stride)
        depth[t] = np.exp(log_depth)
        confidence[t] = _upsample(value[t], obs.lattice, (height, width), stride)
        moving[t] = _upsample(1 - static[t], obs.lattice, (height, width), stride) > 0.5
    depth /= np.median(depth)
    scale = np.exp(np.median(solution.log_depth))
    pose = np.tile(np.eye(4), (num, 1, 1))
    pose[:, :3, :3] = structure.rotation[0].T @ structure.rotation
    pose[:, :3, 3] = (structure.translation - structure.translation[0]) @ structure.rotation[0]
    pose[:, :3, 3] /= scale
    residual = flow_lattice.residual_norm(
        dataclasses.replace(structure, log_rho=-solution.log_depth), obs
    )
    trusted = obs.weight > 0
    parallax = flow_motion.NOISE_PX / np.sqrt(np.median(solution.measured_variance, axis=1))
    return FlowState(
        depth=jnp.asarray(depth),
        confidence=jnp.asarray(confidence),
        dynamic_mask=jnp.asarray(moving),
        world_from_cam=jnp.asarray(pose, jnp.float32),
        focal=jnp.float32(structure.focal),
        parallax=jnp.asarray(parallax, jnp.float32),
        residual=jnp.float32(np.median(residual[trusted]) if trusted.any() else 0),
        trusted=jnp.float32(trusted[:, :2].mean()),
        prior_used=jnp.asarray(solution.fitted.useful),
        prior_name="none" if prior is None else prior.name,
    )


def _upsample(values, lattice, shape, stride) -> np.ndarray:
    """Values of lattice cells -> (H, W), bilinear between the pixels that they were taken from."""
    height, width = shape
    x = (np.arange(width, dtype=np.float32) - stride // 2) / stride
    y = (np.arange(height, dtype=np.float32) - stride // 2) / stride
    grid = np.asarray(values, np.float32).reshape(lattice)
    x, y = np.meshgrid(x, y)
    return cv2.remap(grid, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@jax.jit
def _cut_pairs(state: FlowState, i: jax.Array, j: jax.Array) -> PairPredictions:
    height, width = state.depth.shape[1:]
    intrinsics = camera.intrinsics_matrix(state.focal, camera.image_centre(height, width))
    points = camera.unproject(state.depth, intrinsics[None])
    cam_from_world = rigid.invert(state.world_from_cam)
    between = jnp.matmul(cam_from_world[i], state.world_from_cam[j], precision="highest")
    return PairPredictions(
        pointmap1=points[i],
        pointmap2=rigid.apply(between[:, None, None], points[j]),
        confidence1=state.confidence[i],
        confidence2=state.confidence[j],
    )
