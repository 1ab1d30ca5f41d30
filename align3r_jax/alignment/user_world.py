"""Alignment with cameras of the user: inside in a world of its own, in the end in the user's.

The user's world may count in kilometres or millimetres and have its origin anywhere; losses,
codings and step lengths want depths near 1 about the origin. So the aligner works in a world
x_user = s R x + t, chosen from the start of the scene, and the result is carried over at the end.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import (
    hierarchical,
    initialise,
    known_cameras,
    soundness,
    spanning_tree,
    variables,
)
from align3r_jax.alignment.initialise import StartingScene
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import camera
from align3r_jax.structs import (
    AlignmentVariables,
    Array,
    OpticalFlow,
    PairGraph,
    PairPredictions,
)

_LEAST_PARALLAX = 2e-3  # spread of the cameras over the median depth: below, no scale is visible
_MISFIT = np.deg2rad(10)  # median angle at which known poses contradict the video
_UNIT = 4.0  # spreads of held cameras in one unit of a long video: depths come out near 1
_FAR = 1e4  # distance of the user's origin over the spread of the cameras: float32 loses digits


@struct.dataclass
class World:
    """x_user = scale rotation x + translation: (), (3, 3), (3,) float64 on the host."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    def poses_to_user(self, world_from_cam: Array) -> np.ndarray:
        """Returns (T, 4, 4) float64 poses in the user's world."""
        poses = np.asarray(world_from_cam, np.float64)
        moved = np.tile(np.eye(4), (len(poses), 1, 1))
        moved[:, :3, :3] = self.rotation @ poses[:, :3, :3]
        centres = self.scale * poses[:, :3, 3] @ self.rotation.T + self.translation
        moved[:, :3, 3] = centres
        return moved

    def poses_from_user(self, world_from_cam: Array) -> np.ndarray:
        """Returns (T, 4, 4) float64 poses in the aligner's world."""
        poses = np.asarray(world_from_cam, np.float64)
        moved = np.tile(np.eye(4), (len(poses), 1, 1))
        moved[:, :3, :3] = self.rotation.T @ poses[:, :3, :3]
        moved[:, :3, 3] = (poses[:, :3, 3] - self.translation) @ self.rotation / self.scale
        return moved


@struct.dataclass
class Aligned:
    """result: in the aligner's world. world: the way to the user's; None: no pose is known.

    fixes_scale: the known cameras say how large the scene is. notes: for the reader of the result.
    """

    result: align_lib.AlignResult
    world: World | None = None
    fixes_scale: bool = struct.field(pytree_node=False, default=False)
    notes: tuple[str, ...] = struct.field(pytree_node=False, default=())


class Placed(NamedTuple):
    """A problem in the aligner's own world.

    start: the variables to start from. known: what is known, in that world. config: the settings
    that hold with it. world: the way back. notes: what a reader of the result should know.
    """

    start: AlignmentVariables
    known: variables.Known
    config: AlignmentConfig
    world: World
    notes: tuple[str, ...]


def align(
    predictions: PairPredictions,
    graph: PairGraph,
    flow: OpticalFlow | None,
    config: AlignmentConfig,
    known: variables.Known | None,
    **options: Any,
) -> Aligned:
    """Aligns one graph with whatever is known of its cameras; options: of `align_graph`."""
    predictions = soundness.checked(predictions, graph)
    doubts = soundness.notes(predictions, graph)
    if known is None or known.world_from_cam is None:
        result = align_lib.align_graph(predictions, graph, flow, config, known=known, **options)
        return Aligned(result, notes=doubts)
    placed = place(predictions, graph, config, known)
    result = align_lib.align_graph(
        predictions, graph, flow, placed.config, known=placed.known, start=placed.start, **options
    )
    return Aligned(result, placed.world, placed.known.fixes_scale, doubts + placed.notes)


def align_video(
    num_frames: int,
    *,
    config: AlignmentConfig,
    known: variables.Known | None,
    **options: Any,
) -> Aligned:
    """Aligns a long video in clips; options: of `hierarchical.align_video`.

    Poses of all frames are held in every clip. Poses of some frames, or soft ones, place the
    finished scene and do not change it.
    """
    if known is None or known.world_from_cam is None:
        return Aligned(hierarchical.align_video(num_frames, config=config, known=known, **options))
    if not known.holds_all_poses:
        free = _without_poses(known)
        held = free if free.focal is not None else None
        result = hierarchical.align_video(num_frames, config=config, known=held, **options)
        world, fit = fitted(result, known, variables.settings_with_known(config, held))
        sentence = (
            "The known poses place the scene of this long video but are not held in it: that "
            "needs poses of all frames, held fixed, or an alignment of all frames at once (flat)."
        )
        return Aligned(
            result, world, fit.fixes_scale, (sentence, *notes(fit, known, fit.fixes_scale))
        )
    centres = np.asarray(known.world_from_cam, np.float64)[:, :3, 3]
    spread = float(np.sqrt(((centres - centres.mean(axis=0)) ** 2).sum(-1).mean()))
    world = World(_UNIT * spread if spread > 0 else 1.0, np.eye(3), centres.mean(axis=0))
    inner = dataclasses.replace(
        known, world_from_cam=world.poses_from_user(known.world_from_cam), fixes_scale=spread > 0
    )
    config = dataclasses.replace(config, residual_over_scale=spread > 0)
    result = hierarchical.align_video(num_frames, config=config, known=inner, **options)
    return Aligned(result, world, spread > 0)


def place(
    predictions: PairPredictions,
    graph: PairGraph,
    config: AlignmentConfig,
    known: variables.Known,
) -> Placed:
    """Starts a scene from its pairs, finds the user's world by the known poses, moves both there.

    The scene keeps the normalised scale of its pairs; the known poses are brought to it. With
    known positions that lie apart the residuals count relative to the pair scales
    (`residual_over_scale`), so that the scene does not shrink against held cameras.

    Args:
        known: `world_from_cam` is set.
    """
    free = _without_poses(known)
    free_config = variables.settings_with_known(config, free)
    scene = initialise.starting_scene(predictions, graph, free_config, known=free)
    exact = known.rotation_deviation is None
    fit = known_cameras.fit_world(
        scene.world_from_cam, known.world_from_cam, known.pose_mask, exact=exact
    )
    fixes_scale = fit.fixes_scale and _parallax(scene) >= _LEAST_PARALLAX
    mask = slice(None) if known.pose_mask is None else np.asarray(known.pose_mask)
    centre = np.asarray(known.world_from_cam)[mask, :3, 3].mean(axis=0)
    gain = variables.scale_normalisation(jnp.log(scene.pair_scale), free_config)
    world = World(fit.scale, fit.rotation, centre)
    if fixes_scale and exact:
        growth = known_cameras.parallax_scale(
            predictions,
            graph.pairs,
            gain * scene.pair_scale,
            world.poses_from_user(known.world_from_cam),
            _intrinsics(scene, free),
            known.pose_mask,
        )
        if 1 / known_cameras.MAX_GROWTH < growth < known_cameras.MAX_GROWTH:
            world = dataclasses.replace(world, scale=fit.scale * growth)
    deviation = known.translation_deviation
    inner = dataclasses.replace(
        known,
        world_from_cam=world.poses_from_user(known.world_from_cam),
        translation_deviation=None if deviation is None else deviation / world.scale,
        fixes_scale=fixes_scale,
    )
    inner_config = variables.settings_with_known(config, inner)
    if fixes_scale:
        inner_config = dataclasses.replace(inner_config, residual_over_scale=True)
    # Its origin is the middle of the known cameras, so that the user's own plays no part.
    middle = fit.rotation.T @ (centre - fit.translation) / fit.scale
    moved = _shifted(scene, gain, -middle)
    start = variables.with_known(initialise.encode(moved, inner_config), inner, inner_config)
    return Placed(start, inner, inner_config, world, notes(fit, known, fixes_scale))


def notes(
    fit: known_cameras.WorldFit, known: variables.Known, fixes_scale: bool
) -> tuple[str, ...]:
    """Returns sentences: what the known poses leave open, and whether they fit the video."""
    poses = np.asarray(known.world_from_cam)
    chosen = poses if known.pose_mask is None else poses[np.asarray(known.pose_mask)]
    sentences = []
    if not fixes_scale:
        reason = "one pose is known" if len(chosen) == 1 else "the known positions hardly differ"
        sentences.append(
            f"The scale of the scene is free: {reason}, which fixes rotation and position of the "
            "world but not its unit. Two known positions apart fix it."
        )
    if fit.angle > _MISFIT:
        sentences.append(
            f"The known poses differ from what the video shows by {np.rad2deg(fit.angle):.0f} "
            "degrees in the median. Are they world_from_cam with x right, y down, z forward?"
        )
    spread = float(np.sqrt(((chosen[:, :3, 3] - chosen[:, :3, 3].mean(0)) ** 2).sum(-1).mean()))
    distance = float(np.linalg.norm(chosen[:, :3, 3].mean(axis=0)))
    if spread > 0 and distance > _FAR * spread:
        sentences.append(
            f"The known positions lie {distance:g} units from their origin but only {spread:g} "
            "apart; files in single precision lose digits. Subtract an offset from them."
        )
    return tuple(sentences)


def fitted(
    result: align_lib.AlignResult, known: variables.Known, config: AlignmentConfig
) -> tuple[World, known_cameras.WorldFit]:
    """Returns the world that carries a result of free poses onto the known ones, and the fit."""
    size = np.shape(result.variables.log_depth)[-2:]
    geometry = variables.decode_whole(result.variables, config, (size[0], size[1]))
    fit = known_cameras.fit_world(geometry.world_from_cam, known.world_from_cam, known.pose_mask)
    return World(fit.scale, fit.rotation, fit.translation), fit


def _without_poses(known: variables.Known) -> variables.Known:
    return dataclasses.replace(
        known,
        world_from_cam=None,
        pose_mask=None,
        rotation_deviation=None,
        translation_deviation=None,
    )


def _intrinsics(scene: StartingScene, known: variables.Known) -> np.ndarray:
    height, width = scene.depth.shape[1:]
    focal = np.where(
        np.isnan(known.known_focals(len(scene.focal))),
        scene.focal,
        known.known_focals(len(scene.focal)),
    )
    middle = np.array([width / 2, height / 2])
    given = [spanning_tree.principal_point(known, frame) for frame in range(len(focal))]
    point = np.stack([middle if p is None else p for p in given])
    return np.asarray(camera.intrinsics_matrix(jnp.asarray(focal), jnp.asarray(point)))


def _parallax(scene: StartingScene) -> float:
    """Spread of the cameras over the median depth."""
    centres = np.asarray(scene.world_from_cam, np.float64)[:, :3, 3]
    depth = np.asarray(scene.depth)
    usable = np.isfinite(depth) & (depth > 0)
    typical = float(np.median(depth[usable])) if usable.any() else 1.0
    return float(np.sqrt(((centres - centres.mean(axis=0)) ** 2).sum(-1).mean())) / typical


def _shifted(scene: StartingScene, gain: Array, shift: np.ndarray) -> StartingScene:
    """Returns the scene moved by x -> x + shift, its pair similarities along with it.

    gain: g, by which points and poses are multiplied already, and the similarities are here.
    """
    offset = jnp.asarray(shift, jnp.float32)
    return dataclasses.replace(
        scene,
        points=scene.points + offset,
        world_from_cam=scene.world_from_cam.at[:, :3, 3].add(offset),
        pair_scale=gain * scene.pair_scale,
        pair_translation=gain * scene.pair_translation + offset,
    )
