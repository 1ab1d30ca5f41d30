"""Long videos: key frames first, then all clips from their key frames, then one scene of all.

Clips are consecutive runs of frames; the first frame of each is its key frame. The key frames are
aligned among themselves; clips are aligned in groups (`clips.solve`), each starting from pose and
focal of its key frame, and are carried to where the key-frame pass put that frame; in the end all
frames are refined together (`joint.refine`). Full-size predictions of one group exist at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax import pairing
from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import clips as clips_lib
from align3r_jax.alignment import joint, lattice
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.initialise import KeyFramePrior
from align3r_jax.alignment.solvers import adam
from align3r_jax.config import AlignmentConfig, PairConfig
from align3r_jax.geometry import rigid
from align3r_jax.structs import AlignmentVariables, Array, OpticalFlow, PairGraph, PairPredictions

Keep = Callable[[str, Callable[[], Any]], Any]


def _compute(name: str, compute: Callable[[], Any]) -> Any:
    del name
    return compute()


@dataclasses.dataclass(frozen=True)
class Cut:
    """How much of a video is in memory at a time.

    clips_per_call: clips aligned in one call; 1 (parity): a shorter clip is not filled up, which
    changes roundings. lattice_keys: key frames are aligned on the pixel
    lattice of the joint refinement, without flow, rather than at full size. pairs_at_once: pairs
    that are predicted together where only their lattice is kept.
    """

    clips_per_call: int = 1
    lattice_keys: bool = False
    pairs_at_once: int = 64


@struct.dataclass
class Runs:
    """What some runs leave behind, NumPy: results, and the lattice of their pairs (or None).

    stride: of the pixels that the results' depth has, 1 for all.
    """

    results: tuple[align_lib.AlignResult, ...]
    observations: joint.Observations | None
    stride: int = struct.field(pytree_node=False, default=1)


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
    cut: Cut = Cut(),
    keep: Keep = _compute,
) -> align_lib.AlignResult:
    """Aligns a video of any length.

    Args:
        predict, flow_of: called with the graph of the key frames, then with that of every clip
            and, for the joint refinement, of its border to the one before; frame numbers of the
            whole video.
        pairs: `clip_size`, `clip_symmetric` and `max_complete_key_frames` count.
        config: `join_rescale` carries the scale of the key-frame pass into every clip; without it
            (parity) each clip keeps the scale it found, and depth jumps between clips. With it
            `joint_iterations` refine all frames together.
        known, dynamic_mask, ignore, depth_prior: of all frames, as `align.prepare` takes them.
        progress: iterations of all runs together.
        keep: (name, compute) -> compute(), or what an interrupted run kept under that name.

    Returns:
        All frames in one world. After the joint refinement the pairs and their variables are those
        of all runs in that world. Without it, pairs, pair_losses and pair variables are those of
        the runs one after the other, key frames first, and pair variables belong to the world of
        their run. The trace is that of all runs one after the other.
    """
    # parity: the two-view shortcut is for videos of two frames, not for clips.
    config = dataclasses.replace(config, optimise_two_frames=True)
    clips = pairing.clips(num_frames, pairing.clip_size(num_frames, pairs.clip_size))
    wants_joint = config.join_rescale and config.joint_iterations > 0 and len(clips) > 1
    runs = len(clips) + (len(clips) > 1)
    total = config.iterations * runs + config.joint_iterations * wants_joint

    tell: adam.Progress = progress or (lambda *_: None)

    def report(done: int, share: int) -> adam.Progress:
        return lambda step, steps, loss: tell(done + share * step // steps, total, loss)

    user = _User(known, dynamic_mask, ignore, depth_prior)
    longest = max(map(len, clips))
    video = _Video(num_frames, predict, flow_of, pairs, config, user, cut, wants_joint, longest)
    if len(clips) == 1:
        one = keep("alignment", lambda: _align_runs(video, clips, report(0, config.iterations)))
        return one.results[0]
    on_lattice = cut.lattice_keys or len(clips) > pairs.max_complete_key_frames > 0
    align_keys = _align_keys_on_lattice if on_lattice else _align_keys
    keys = keep("key frames", lambda: align_keys(video, clips, report(0, config.iterations)))
    parts = [keys]
    for first in range(0, len(clips), cut.clips_per_call):
        chosen = clips[first : first + cut.clips_per_call]
        borders = [
            pairing.border_pairs(clips[max(0, c - 1) : c + 1])
            for c in range(first, first + len(chosen))
        ]
        parts.append(
            keep(
                f"clips {first + 1:04d} to {first + len(chosen):04d} of {len(clips)}",
                functools.partial(
                    _align_runs,
                    video,
                    chosen,
                    report(config.iterations * (1 + first), config.iterations * len(chosen)),
                    priors=_priors(keys, first, len(chosen), config),
                    borders=borders if wants_joint else (),
                ),
            )
        )
    result = joined([run for part in parts for run in part.results], keys, config)
    if not wants_joint:
        return result
    observations = joint.concatenate(part.observations for part in parts)
    del parts
    refined = keep(
        "joint refinement",
        lambda: joint.refine(
            result.variables,
            observations,
            result.dynamic_mask,
            config,
            known=known,
            ignore=ignore,
            depth_prior=depth_prior,
            progress=report(config.iterations * runs, config.joint_iterations),
        ),
    )
    return dataclasses.replace(
        result,
        variables=refined.variables,
        pairs=observations.pairs,
        pair_losses=refined.pair_losses,
        trace=_traces([result.trace, refined.trace]),
        failed=result.failed or refined.failed,
    )


class _User(NamedTuple):
    """What the user gives, of all frames or of those of a run."""

    known: variables_lib.Known | None
    dynamic_mask: Array | None
    ignore: Array | None
    depth_prior: Array | None

    def of(self, frames: np.ndarray) -> dict[str, Any]:
        """Returns the arguments of `align.prepare` for a run."""
        chosen = jax.tree.map(lambda values: np.asarray(values)[frames], self)
        return chosen._asdict()


class _Video(NamedTuple):
    """The arguments of `align_video`, and the number of frames of its longest clip."""

    num_frames: int
    predict: Callable[[PairGraph], PairPredictions]
    flow_of: Callable[[PairGraph], OpticalFlow | None]
    pairs: PairConfig
    config: AlignmentConfig
    user: _User
    cut: Cut
    wants_joint: bool
    longest_clip: int

    def graph(self, pairs: np.ndarray, like: PairGraph) -> PairGraph:
        """Returns a graph over frame numbers of the video."""
        return PairGraph(pairs.astype(np.int32), self.num_frames, like.symmetric, like.name)

    def observe(self, graph: PairGraph, predictions: PairPredictions, flow: OpticalFlow | None):
        """Returns the lattice of some pairs, nothing if no joint refinement follows."""
        if not self.wants_joint:
            return []
        height, width = predictions.confidence1.shape[1:]
        stride = joint.stride_of(height, width, self.config)
        return [joint.observe(graph.pairs, predictions, flow, stride)]


def _align_runs(
    video: _Video,
    runs: Sequence[Sequence[int]],
    progress: adam.Progress,
    *,
    priors: Sequence[KeyFramePrior] = (),
    borders: Sequence[np.ndarray] = (),
    local: PairGraph | None = None,
) -> Runs:
    """Aligns runs of frames together.

    priors: of the key frame of every run. borders: pairs (B, 2) from every run to the one before,
    of which only the lattice is kept. local: graph of every run, numbered from 0; None: of clips.
    """
    symmetric = video.pairs.clip_symmetric
    tasks, pairs, lattices = [], [], []
    for k, run in enumerate(runs):
        frames = np.asarray(run)
        inside = local or pairing.clip_graph(len(frames), symmetric)
        graph = video.graph(frames[inside.pairs], inside)
        predictions, flow = video.predict(graph), video.flow_of(graph)
        lattices += video.observe(graph, predictions, flow)
        task = align_lib.prepare(
            predictions,
            inside,
            _renumber(flow, frames, video.num_frames),
            video.config,
            key_frame_prior=priors[k] if priors else None,
            **video.user.of(frames),
        )
        tasks.append(task)
        pairs.append(graph.pairs)
        if borders and len(borders[k]):
            graph = video.graph(borders[k], inside)
            lattices += video.observe(graph, video.predict(graph), video.flow_of(graph))
    like = local or pairing.clip_graph(video.longest_clip, symmetric)
    results = []
    for task, solved, chosen in zip(tasks, clips_lib.solve(tasks, progress, like=like), pairs):
        results.append(dataclasses.replace(align_lib.finish(task, solved), pairs=chosen))
    return jax.device_get(Runs(tuple(results), joint.concatenate(lattices) if lattices else None))


def _align_keys(video: _Video, clips: Sequence[range], progress: adam.Progress) -> Runs:
    graph = pairing.key_frame_graph(
        len(clips), video.pairs.clip_symmetric, video.pairs.max_complete_key_frames
    )
    return _align_runs(video, [[clip[0] for clip in clips]], progress, local=graph)


def _align_keys_on_lattice(video: _Video, clips: Sequence[range], progress: adam.Progress) -> Runs:
    """The key frames of a long video: so many pairs that only their lattice fits into memory.

    Without flow: over such distances it is composed of too many steps to be worth its time.
    """
    local = pairing.key_frame_graph(
        len(clips), video.pairs.clip_symmetric, video.pairs.max_complete_key_frames
    )
    frames = np.array([clip[0] for clip in clips])
    graph = video.graph(frames[local.pairs], local)
    observed = joint.observe_in_parts(
        graph, video.predict, None, video.config, video.cut.pairs_at_once
    )
    result = joint.align(
        dataclasses.replace(observed, pairs=local.pairs),
        local,
        video.config,
        known=video.user.of(frames)["known"],
        progress=progress,
    )
    result = dataclasses.replace(result, pairs=graph.pairs)
    return jax.device_get(Runs((result,), observed if video.wants_joint else None, observed.stride))


def _priors(keys: Runs, first: int, count: int, config: AlignmentConfig) -> list[KeyFramePrior]:
    geometry = _cameras(keys, config)
    return [
        KeyFramePrior(np.asarray(geometry.world_from_cam[c]), float(geometry.focal[c]))
        for c in range(first, first + count)
    ]


def _cameras(keys: Runs, config: AlignmentConfig) -> variables_lib.Geometry:
    """The decoded key-frame pass; its principal points do not count."""
    found = jax.tree.map(jnp.asarray, keys.results[0].variables)
    return variables_lib.decode_whole(found, config, found.log_depth.shape[-2:])


def joined(
    runs: list[align_lib.AlignResult], keys: Runs, config: AlignmentConfig
) -> align_lib.AlignResult:
    """Returns one result of all clips.

    runs: the key-frame pass, then every clip in a world of its own; `join` brings them together.
    keys: what the key-frame pass left behind.
    """
    fixed_world = runs[0].fixed_world
    cameras = _cameras(keys, config)
    bring = rescale if fixed_world else join
    clips = [
        bring(run.variables, cameras, k, config, keys.stride) for k, run in enumerate(runs[1:])
    ]

    def concatenate(values):
        return np.concatenate([np.asarray(value) for value in values])

    def spread_focal(variables: AlignmentVariables) -> np.ndarray:
        return np.broadcast_to(variables.log_focal, (variables.log_depth.shape[0],))

    frame_groups = ("log_depth", "frame_quaternion", "frame_translation", "principal_point")
    pair_groups = ("pair_quaternion", "pair_translation", "pair_log_scale", "pair_adaptor")
    fields = {name: concatenate(getattr(clip, name) for clip in clips) for name in frame_groups}
    fields |= {
        name: concatenate(getattr(run.variables, name) for run in runs) for name in pair_groups
    }
    return align_lib.AlignResult(
        variables=AlignmentVariables(log_focal=concatenate(map(spread_focal, clips)), **fields),
        dynamic_mask=concatenate(run.dynamic_mask for run in runs[1:]),
        trace=_traces([run.trace for run in runs]),
        pair_losses=concatenate(run.pair_losses for run in runs),
        confidence=concatenate(run.confidence for run in runs[1:]),
        pairs=concatenate(run.pairs for run in runs),
        failed=any(run.failed for run in runs),
        fixed_world=fixed_world,
    )


def _traces(traces: Sequence[dict[str, Array]]) -> dict[str, np.ndarray]:
    """One after the other, of the terms that all have; runs without iterations have none."""
    traces = [trace for trace in traces if trace]
    names = [name for name in traces[0] if all(name in trace for trace in traces)] if traces else []
    return {name: np.concatenate([np.asarray(t[name]) for t in traces]) for name in names}


def join(
    clip: AlignmentVariables,
    keys: variables_lib.Geometry,
    index: int,
    config: AlignmentConfig,
    stride: int = 1,
) -> AlignmentVariables:
    """Returns the clip's variables, moved so that its frame 0 is key frame `index`.

    P_n <- K S(inv(P_0) P_n), D_n <- s D_n: K the key frame's pose in the key-frame pass, P_0 the
    clip's own pose of that frame. S multiplies the translation by s = median(depth of the key
    frame in the key-frame pass / in the clip), 1 without `config.join_rescale`. stride: of the
    pixels that the key-frame pass looked at.
    """
    geometry = variables_lib.decode_whole(clip, config, clip.log_depth.shape[-2:])
    scale = _scale_to_key(geometry, keys, index, config, stride)
    local = rigid.compose(rigid.invert(geometry.world_from_cam[:1]), geometry.world_from_cam)
    local = local.at[:, :3, 3].multiply(scale)
    poses = rigid.compose(keys.world_from_cam[index], local)
    return dataclasses.replace(
        clip,
        log_depth=clip.log_depth + jnp.log(scale),
        frame_quaternion=rigid.quaternion_from_matrix(poses[:, :3, :3]),
        frame_translation=rigid.encode_translation(poses[:, :3, 3]),
    )


def rescale(
    clip: AlignmentVariables, keys: variables_lib.Geometry, index: int, config: AlignmentConfig,
    stride: int = 1,
) -> AlignmentVariables:  # fmt: skip
    """Returns a clip with held poses, its depth D_n <- s D_n with s as in `join`.

    Within a clip the cameras may be so close that its unit hangs on noise; key frames are not.
    """
    geometry = variables_lib.decode_whole(clip, config, clip.log_depth.shape[-2:])
    scale = _scale_to_key(geometry, keys, index, config, stride)
    return dataclasses.replace(clip, log_depth=clip.log_depth + jnp.log(scale))


def _scale_to_key(clip, keys, index, config, stride) -> Array:
    if not config.join_rescale:
        return jnp.ones(())
    return jnp.median(keys.depth[index] / lattice.images(clip.depth[0], stride))


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
