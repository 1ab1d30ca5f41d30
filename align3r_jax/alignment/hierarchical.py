"""Long videos: key frames first, then every clip from its key frame, then one scene of all.

Clips are consecutive runs of frames; the first frame of each is its key frame. The key frames are
aligned among themselves; each clip is aligned alone, starting from pose and focal of its key
frame, and is finally carried to where the key-frame pass put that frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax import pairing
from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.initialise import KeyFramePrior
from align3r_jax.alignment.solvers import adam
from align3r_jax.config import AlignmentConfig, PairConfig
from align3r_jax.geometry import rigid
from align3r_jax.structs import AlignmentVariables, Array, OpticalFlow, PairGraph, PairPredictions


def align_video(
    num_frames: int,
    *,
    predict: Callable[[PairGraph], PairPredictions],
    flow_of: Callable[[PairGraph], OpticalFlow | None],
    pairs: PairConfig,
    config: AlignmentConfig,
    known: variables_lib.Known | None = None,
    dynamic_mask: Array | None = None,
    ignore: Array | None = None,
    depth_prior: Array | None = None,
    progress: adam.Progress | None = None,
) -> align_lib.AlignResult:
    """Aligns a video of any length; only the pairs of one run are in memory at a time.

    Args:
        predict, flow_of: called with the graph of the key frames, then with that of every clip,
            frame numbers of the whole video.
        pairs: `clip_size` and `clip_symmetric` count.
        config: `join_rescale` carries the scale of the key-frame pass into every clip; without it
            (parity) each clip keeps the scale it found, and depth jumps between clips.
        known, dynamic_mask, ignore, depth_prior: of all frames, as `align.align` takes them.
        progress: iterations of all runs together.

    Returns:
        All frames in the world of the key-frame pass. pairs, pair_losses, the trace and the pair
        variables are those of the runs one after the other, key frames first; pair variables
        belong to the world of their run.
    """
    # parity: the two-view shortcut is for videos of two frames, not for clips.
    config = dataclasses.replace(config, optimise_two_frames=True)
    clips = pairing.clips(num_frames, pairing.clip_size(num_frames, pairs.clip_size))
    runs: list[align_lib.AlignResult] = []

    def align(
        run_frames: Sequence[int], local: PairGraph, prior: KeyFramePrior | None
    ) -> align_lib.AlignResult:
        total = config.iterations * (len(clips) + (len(clips) > 1))

        def report(iteration: int, _: int, loss: float) -> None:
            if progress is not None:
                progress(len(runs) * config.iterations + iteration, total, loss)

        frames = np.asarray(run_frames)
        graph = PairGraph(
            pairs=frames[local.pairs].astype(np.int32),
            num_frames=num_frames,
            symmetric=local.symmetric,
            name=local.name,
        )
        result = align_lib.align(
            predict(graph),
            local,
            _renumber(flow_of(graph), frames, num_frames),
            config,
            key_frame_prior=prior,
            known=_known_of(known, frames),
            dynamic_mask=_rows(dynamic_mask, frames),
            ignore=_rows(ignore, frames),
            depth_prior=_rows(depth_prior, frames),
            progress=report,
        )
        runs.append(dataclasses.replace(result, pairs=graph.pairs))
        return runs[-1]

    if len(clips) == 1:
        return align(clips[0], pairing.clip_graph(num_frames, pairs.clip_symmetric), None)

    key_frames = [clip[0] for clip in clips]
    key_graph = pairing.key_frame_graph(len(clips), pairs.clip_symmetric)
    key_run = align(key_frames, key_graph, None)
    keys = _decode(key_run.variables, config)
    priors = [
        KeyFramePrior(np.asarray(keys.world_from_cam[c]), float(keys.focal[c]))
        for c in range(len(clips))
    ]
    for clip, prior in zip(clips, priors, strict=True):
        align(clip, pairing.clip_graph(len(clip), pairs.clip_symmetric), prior)
    return _joined(runs, keys, config)


def _decode(variables: AlignmentVariables, config: AlignmentConfig) -> variables_lib.Geometry:
    return variables_lib.decode(variables, config, variables.log_depth.shape[-2:])


def _joined(
    runs: list[align_lib.AlignResult], keys: variables_lib.Geometry, config: AlignmentConfig
) -> align_lib.AlignResult:
    """One result of all clips (runs after the first); the first is the key-frame pass."""
    fixed_world = runs[0].fixed_world
    clips = [
        run.variables if fixed_world else join(run.variables, keys, c, config)
        for c, run in enumerate(runs[1:])
    ]

    def concatenate(values):
        return np.concatenate([np.asarray(value) for value in values])

    def spread_focal(variables: AlignmentVariables) -> np.ndarray:
        return np.broadcast_to(variables.log_focal, (variables.log_depth.shape[0],))

    frame_groups = (
        "log_depth",
        "frame_quaternion",
        "frame_translation",
        "principal_point",
    )
    pair_groups = ("pair_quaternion", "pair_translation", "pair_log_scale", "pair_adaptor")
    fields = {name: concatenate(getattr(clip, name) for clip in clips) for name in frame_groups}
    fields |= {
        name: concatenate(getattr(run.variables, name) for run in runs) for name in pair_groups
    }
    return align_lib.AlignResult(
        variables=AlignmentVariables(log_focal=concatenate(map(spread_focal, clips)), **fields),
        dynamic_mask=concatenate(run.dynamic_mask for run in runs[1:]),
        trace={
            name: concatenate(run.trace[name] for run in runs if run.trace)
            for name in runs[0].trace
        },
        pair_losses=concatenate(run.pair_losses for run in runs),
        confidence=concatenate(run.confidence for run in runs[1:]),
        pairs=concatenate(run.pairs for run in runs),
        failed=any(run.failed for run in runs),
        fixed_world=fixed_world,
    )


def join(
    clip: AlignmentVariables, keys: variables_lib.Geometry, index: int, config: AlignmentConfig
) -> AlignmentVariables:
    """Returns the clip's variables, moved so that its frame 0 is key frame `index`.

    P_n <- K S(inv(P_0) P_n), D_n <- s D_n: K the key frame's pose in the key-frame pass, P_0 the
    clip's own pose of that frame. S multiplies the translation by s = median(depth of the key
    frame in the key-frame pass / in the clip), 1 without `config.join_rescale`.
    """
    geometry = _decode(clip, config)
    scale = jnp.ones(())
    if config.join_rescale:
        scale = jnp.median(keys.depth[index] / geometry.depth[0])
    local = rigid.compose(rigid.invert(geometry.world_from_cam[:1]), geometry.world_from_cam)
    local = local.at[:, :3, 3].multiply(scale)
    poses = rigid.compose(keys.world_from_cam[index], local)
    return dataclasses.replace(
        clip,
        log_depth=clip.log_depth + jnp.log(scale),
        frame_quaternion=rigid.quaternion_from_matrix(poses[:, :3, :3]),
        frame_translation=rigid.encode_translation(poses[:, :3, 3]),
    )


def _renumber(flow: OpticalFlow | None, frames: np.ndarray, num_frames: int) -> OpticalFlow | None:
    """Returns the flow with frame numbers of the run; fields that leave the run are dropped."""
    if flow is None:
        return None
    number = np.full(num_frames, -1, np.int32)
    number[frames] = np.arange(len(frames))
    local = number[np.asarray(flow.pairs)]
    inside = (local >= 0).all(axis=-1)
    if inside.all():
        return dataclasses.replace(flow, pairs=local)
    return OpticalFlow(local[inside], flow.flow[inside], flow.weight[inside], name=flow.name)


def _known_of(known: variables_lib.Known | None, frames: np.ndarray) -> variables_lib.Known | None:
    if known is None:
        return None
    return jax.tree.map(lambda values: np.asarray(values)[frames], known)


def _rows(values: Array | None, frames: np.ndarray) -> np.ndarray | None:
    return None if values is None else np.asarray(values)[frames]
