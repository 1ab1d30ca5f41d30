"""Point maps without learnt weights: structure and motion of the whole clip from optical flow.

`prepare` samples flow over several frame distances on a lattice, looks for the best start
(`flow_start`), bundles cameras, focal and depth (`flow_bundle`), triangulates and pulls depth to
the prior (`flow_depth`) and finds what moves; `predict` cuts pairs out of that solution.
"""

from __future__ import annotations

import dataclasses

import cv2
import jax
import numpy as np
from flax import struct

from align3r_jax.errors import UserError
from align3r_jax.geometry import camera, rigid
from align3r_jax.predictors import flow_cameras, flow_depth, flow_lattice, flow_motion
from align3r_jax.predictors.flow_normal import BundleConfig
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import DepthPrior, Frames, PairGraph, PairPredictions

_FOCAL_PRIOR = 0.95  # of the longer side, unless the prior knows better
_LOW_PARALLAX_PX = 1.0
_KNOWN_FOCAL_WEIGHT = 0.3
_SURE = 0.1  # deviation of log depth at which confidence is halved


@struct.dataclass
class FlowState:
    """The clip's solution, NumPy arrays: the device sees the frames of one graph at a time.

    depth, confidence, dynamic_mask: (T, H, W); world_from_cam: (T, 4, 4); focal: () pixels;
    parallax: (T,) median pixels by which depth shows in the flow; residual: () median pixels;
    trusted: () share of flow that is consistent; prior_used: () bool."""

    depth: np.ndarray
    confidence: np.ndarray
    dynamic_mask: np.ndarray
    world_from_cam: np.ndarray
    focal: np.ndarray
    parallax: np.ndarray
    residual: np.ndarray
    trusted: np.ndarray
    prior_used: np.ndarray
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
        obs, stride = flow_lattice.sample_flow(frames, flow.sharpest())
        full_prior = _prior_log_depth(prior)
        prior_log = None
        if full_prior is not None:
            centre = np.array([width / 2, height / 2], np.float32)
            columns, rows = np.rint(obs.xy + centre).astype(int).T
            prior_log = full_prior[:, rows, columns]
        focal_prior = _FOCAL_PRIOR * max(height, width)
        focals = [0.75 * focal_prior, 1.2 * focal_prior]
        config = BundleConfig(focal_prior=focal_prior)
        if prior is not None and prior.focal is not None:
            focal_prior = float(np.median(np.asarray(prior.focal)))
            focals = [focal_prior]
            config = BundleConfig(focal_prior=focal_prior, focal_weight=_KNOWN_FOCAL_WEIGHT)
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
        if not solution.fitted.knows_movers:
            standing = flow_motion.stand_movers(solution.log_depth, static, obs.lattice)
            solution = dataclasses.replace(solution, log_depth=standing)
        depth = _dense_depth(solution, obs, full_prior, stride, (height, width))
        return _to_state(structure, obs, solution, static, depth, prior, stride, frames.images)

    def predict(self, state: FlowState, graph: PairGraph) -> PairPredictions:
        """Returns both frames' points in camera i, the whole clip in one scale."""
        frames, local = np.unique(graph.pairs, return_inverse=True)
        i, j = local.reshape(graph.pairs.shape).T
        return _cut_pairs(
            state.depth[frames], state.confidence[frames], state.world_from_cam[frames],
            state.focal, i, j,
        ).check(graph)  # fmt: skip

    def limits(self, state: FlowState) -> tuple[str, ...]:
        """Returns what a reader of the result should know."""
        knows = bool(state.prior_used) and state.prior_name not in ("none", "plane")
        origin = "cameras and depth come from optical flow alone"
        if knows:
            origin = (
                "cameras come from optical flow, depth from it and from the prior "
                f"({state.prior_name})"
            )
        said = [
            f"Predictor flow: {origin}, without weights of a pairwise network; focal length and "
            "scale are estimates."
        ]
        parallax = float(np.median(state.parallax))
        source = f"the prior's ({state.prior_name})" if knows else "a smooth guess"
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
    """log_depth: (T, P), regularised. measured_variance: of the triangulation alone, variance:
    with the prior (T, P). score: motion score (T, P)."""

    log_depth: np.ndarray
    measured_variance: np.ndarray
    variance: np.ndarray
    score: np.ndarray
    fitted: flow_depth.FittedPrior


def _prior_log_depth(prior: DepthPrior | None) -> np.ndarray | None:
    """Log depth of the prior (T, H, W), NaN where it is missing; None if it has no relief."""
    if prior is None:
        return None
    depth = np.asarray(prior.depth, np.float32)
    known = np.isfinite(depth) & (depth > 0)
    log_depth = np.where(known, np.log(np.where(known, depth, 1)), np.nan)
    relief = [np.ptp(frame[mask]) for frame, mask in zip(log_depth, known) if mask.any()]
    return log_depth if max(relief, default=0) > 1e-3 else None


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


def _dense_depth(solution, obs, full_prior, stride, shape) -> np.ndarray:
    """(T, H, W): the lattice's depth, with the detail of the prior if it was used."""
    depth = np.empty((len(solution.log_depth), *shape), np.float32)
    for t, cells in enumerate(solution.log_depth):
        depth[t] = flow_lattice.upsample(cells, obs.lattice, shape, stride)
        if full_prior is not None and solution.fitted.useful:
            coarse = full_prior[t, stride // 2 :: stride, stride // 2 :: stride]
            smooth = flow_lattice.upsample(coarse, obs.lattice, shape, stride)
            depth[t] += np.nan_to_num(full_prior[t] - smooth)
    return np.exp(depth)


def _to_state(structure, obs, solution, static, depth, prior, stride, images) -> FlowState:
    num, shape = len(depth), depth.shape[1:]
    sure = 1 / (1 + np.sqrt(solution.variance) / _SURE)
    seen = np.minimum(obs.weight.sum(1), 1)
    cells = 1 + (2.5 + 6 * sure * (0.5 + 0.5 * seen)) * np.where(static > 0, 1, 0.2)

    confidence, moving = np.empty((num, *shape), np.float32), np.empty((num, *shape), bool)
    for t, image in enumerate(images):
        confidence[t] = flow_lattice.upsample(cells[t], obs.lattice, shape, stride)
        mask = flow_lattice.upsample(1 - static[t], obs.lattice, shape, stride)
        moving[t] = flow_motion.outline(mask, image, 2 * stride)
    scale = np.median(depth)
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
        depth=np.divide(depth, scale, out=depth),
        confidence=confidence,
        dynamic_mask=moving,
        world_from_cam=pose.astype(np.float32),
        focal=np.asarray(structure.focal, np.float32),
        parallax=parallax.astype(np.float32),
        residual=np.asarray(np.median(residual[trusted]) if trusted.any() else 0, np.float32),
        trusted=np.asarray(trusted[:, :2].mean(), np.float32),
        prior_used=np.asarray(solution.fitted.useful),
        prior_name="none" if prior is None else prior.name,
    )


@jax.jit
def _cut_pairs(depth, confidence, world_from_cam, focal, i, j) -> PairPredictions:
    """Pairs (i, j) of the F frames depth, confidence (F, H, W), world_from_cam (F, 4, 4)."""
    height, width = depth.shape[1:]
    intrinsics = camera.intrinsics_matrix(focal, camera.image_centre(height, width))
    points = camera.unproject(depth, intrinsics[None])
    between = rigid.compose(rigid.invert(world_from_cam)[i], world_from_cam[j])
    return PairPredictions(
        pointmap1=points[i],
        pointmap2=rigid.apply(between, points[j]),
        confidence1=confidence[i],
        confidence2=confidence[j],
    )
