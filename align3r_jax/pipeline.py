"""The main flow: frames -> depth prior -> pair prediction -> flow -> alignment -> Scene.

Each stage is a pure function of what came before; this file only puts them in order.
"""

from __future__ import annotations

import functools

import numpy as np

from align3r_jax import pairing, stages
from align3r_jax import plan as plan_lib
from align3r_jax.alignment import (
    align,
    batch,
    bucketed,
    finish,
    hierarchical,
    user_inputs,
    user_world,
)
from align3r_jax.alignment.terms import prior_depth
from align3r_jax.config import ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.feedforward import run as feedforward
from align3r_jax.findings import warnings
from align3r_jax.predictors import choose, refine
from align3r_jax.predictors.protocol import Predictor
from align3r_jax.priors import mono_depth, optical_flow, sources
from align3r_jax.structs import (
    Array,
    DepthPrior,
    Frames,
    KnownCameras,
    OpticalFlow,
    PairGraph,
    Scene,
    WorkingSize,
)
from align3r_jax.weights import kinds
from align3r_jax.weights.store import LoadedNetwork

_FLOWS_AT_ONCE = 32


def reconstruct(
    frames: Frames | Array,
    *,
    model: LoadedNetwork | None = None,
    predictor: Predictor | None = None,
    prior: DepthPrior | None = None,
    prior_model: LoadedNetwork | mono_depth.DepthModel | None = None,
    flow_source: LoadedNetwork | optical_flow.FlowSource | None = None,
    originals: Array | None = None,
    cameras: KnownCameras | None = None,
    masks: Array | None = None,
    config: ReconstructConfig = ReconstructConfig(),
    cache_dir: str | None = None,
    run: stages.Run | None = None,
) -> Scene:
    """Returns depth, cameras, motion masks and confidence of a video of a moving scene.

    frames: `Frames` (of `io.video.read_frames`) or (T, H, W, 3) uint8 RGB with sides that are
    multiples of 16. model: a network of `align3r_jax.load`; without one the flow predictor works.
    predictor: your own instead of the two that `config.predictor` names.
    prior: monocular depth; None computes the one that `config.prior` names from `originals`
    (T, H0, W0, 3) uint8, the frames before resizing (default: the frames themselves).
    prior_model, flow_source: a depth and a flow network of `align3r_jax.load(path, kind=None)`, or
    your own `DepthModel` and `FlowSource`, instead of what `config.prior` and `config.flow` name.
    cameras: intrinsics (pixels of the original frames) and poses that are known, of all frames or
    of some, held fixed or as soft priors; the result is then in their world and unit. masks:
    (T, H, W) at working size, bool (True moves) or uint8 labels: 0 static, 1 dynamic, 2 ignore,
    255 not known. `io.cameras.read_cameras`, `io.mask_files` read both from files.
    run: collects times, memory and limits, and resumes.
    Raises UserError for frames, priors or weights that cannot work together.
    """
    frames = as_frames(frames)
    run = run or stages.Run()
    if model is not None:
        kinds.check_wanted(kinds.get(model.kind), kinds.PAIRWISE, model.name)
    originals = frames.images if originals is None else originals
    if config.pairs.mode == "feedforward":
        _check_alone(cameras, masks)
        return feedforward.reconstruct(
            frames, model=model, predictor=predictor, prior=prior, prior_model=prior_model,
            flow_source=flow_source, originals=originals, config=config, run=run,
        )  # fmt: skip
    user, sentences = user_inputs.prepare(frames, cameras, masks, config.alignment)
    for sentence in sentences:
        run.limit(sentence)
    height, width = frames.images.shape[1:3]
    plan = plan_lib.make_plan(
        frames.num_frames,
        height,
        width,
        config,
        network=None if model is None else model.config,
        max_memory=plan_lib.parse_memory(config.max_memory) if config.max_memory else None,
        allowance=run.allowance,
    )
    run.tell(plan.describe())
    config = plan.applied(config)

    if prior is None:
        spec, models = sources.prior_source(config, model, prior_model, run.limit)
        prior = run.stage(
            "depth prior",
            lambda: mono_depth.estimate_depth(
                frames, originals, spec, cache_dir=cache_dir, models=models
            ),
        )
    if model is None and predictor is None and prior is not None:
        prior = _cleaned(frames, prior, config, run)
    prior = user_inputs.with_known_focal(prior, user.known)
    source = sources.flow_source(
        config.flow, frames, flow_source, run.limit,
        cache_dir=cache_dir, compute_dtype=config.compute_dtype,
    )  # fmt: skip
    predictor = predictor or choose.make_predictor(
        config, model, prior, source, run.limit, frames_kept=plan.frames_kept
    )
    run.facts |= {
        "plan": plan.facts(),
        "solver": config.alignment.solver,
        "predictor": predictor.name,
        "prior": prior.name if prior is not None else "none",
        "flow": source.name if source is not None else "none",
    }
    state = run.stage("frame features", lambda: predictor.prepare(frames, prior, source))
    for sentence in predictor.limits(state):
        run.limit(sentence)

    if plan.mode == "hierarchical":
        cut = hierarchical.Cut(plan.clips_per_call, plan.lattice_keys, plan.pairs_at_once)
        aligned = _align_hierarchical(
            frames, predictor, state, source, prior, user, config, cut, run
        )
    else:
        aligned = _align_flat(frames, predictor, state, source, prior, user, config, run)
    result = aligned.result
    for sentence in aligned.notes:
        run.limit(sentence)
    if result.failed:
        run.limit(
            "The alignment loss became NaN or infinite; the result is that of the last good "
            "iteration. Try a smaller learning rate or another prior."
        )
    run.facts["pairs"] = np.asarray(result.pairs).tolist()
    run.products |= {"prior": prior, "flow": _neighbour_flow(frames, source)}
    scale, metric = _scale_of_prior(result.variables.log_depth, prior, aligned.fixes_scale, run)
    scene = run.stage(
        "scene",
        lambda: finish.to_scene(
            result,
            frames,
            config.alignment,
            world=aligned.world,
            scale=scale,
            metric=metric,
            given_mask=user.dynamic_mask,
        ),
        keep=False,
    )
    known_depth = None if prior is None or prior.name in warnings.WEAK_PRIORS else prior.depth
    for finding in warnings.find(scene, known_depth, run.limits):
        run.limit(finding.sentence)
    return scene


def _check_alone(cameras: KnownCameras | None, masks: Array | None) -> None:
    """Raises UserError if something is given that only an alignment can heed."""
    for name, value in (("cameras", cameras), ("masks", masks)):
        if value is not None:
            raise UserError(
                f"Known {name} are heeded by an alignment, and mode='feedforward' has none; drop "
                "them or use another mode."
            )


def as_frames(frames: Frames | Array) -> Frames:
    """Returns checked `Frames`; an array becomes frames one second apart."""
    if not isinstance(frames, Frames):
        images = np.asarray(frames)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise UserError(
                f"Frames must be (T, H, W, 3) uint8, got {images.shape} {images.dtype}; "
                "io.video.read_frames makes them from a video."
            )
        height, width = images.shape[1:3]
        size = WorkingSize(
            original=(height, width), resized=(height, width), crop=(0, 0), working=(height, width)
        )
        names = tuple(f"frame_{k:04d}" for k in range(len(images)))
        frames = Frames(images, np.arange(len(images), dtype=np.float64), size, names)
    frames.check()
    if frames.num_frames < 2:
        raise UserError(
            f"Got {frames.num_frames} frame; at least 2 are needed to find cameras and depth."
        )
    height, width = frames.images.shape[1:3]
    if height % 16 or width % 16:
        raise UserError(
            f"Frames are {width}x{height}; both sides must be multiples of 16. "
            "io.video.read_frames resizes and crops to such a size."
        )
    return frames


def _cleaned(
    frames: Frames, prior: DepthPrior, config: ReconstructConfig, run: stages.Run
) -> DepthPrior:
    if not refine.is_worth_it(config, prior):
        return prior
    run.limit(
        "The depth prior was cleaned by the shipped align3r_small (toy weights, trained on "
        "procedural scenes; it passed its gates); --norefine_prior leaves it as it is."
    )
    return run.stage("prior refinement", lambda: refine.with_shipped(frames, prior))


def _align_flat(
    frames: Frames,
    predictor: Predictor,
    state: object,
    source: optical_flow.FlowSource | None,
    prior: DepthPrior | None,
    user: user_inputs.UserInputs,
    config: ReconstructConfig,
    run: stages.Run,
) -> user_world.Aligned:
    graph = pairing.make_pairs(frames.num_frames, config.pairs)
    predictions = run.stage("pair prediction", lambda: predictor.predict(state, graph))
    predictions.check(graph)
    flow = run.stage("optical flow", lambda: _flow_of(frames, source, graph))
    return run.stage(
        "alignment",
        lambda: user_world.align(
            predictions,
            graph,
            flow,
            config.alignment,
            user.known,
            dynamic_mask=user.dynamic_mask,
            ignore=user.ignore,
            depth_prior=None if prior is None else prior.depth,
            progress=run.progress("alignment"),
            solver=_solver(graph, config),
        ),
    )


def _solver(graph: PairGraph, config: ReconstructConfig) -> align.Solver:
    if not config.buckets:
        return align.solve
    like = pairing.make_pairs(batch.bucket(graph.num_frames), config.pairs)
    return functools.partial(bucketed.solve, like=like)


def _align_hierarchical(
    frames: Frames,
    predictor: Predictor,
    state: object,
    source: optical_flow.FlowSource | None,
    prior: DepthPrior | None,
    user: user_inputs.UserInputs,
    config: ReconstructConfig,
    cut: hierarchical.Cut,
    run: stages.Run,
) -> user_world.Aligned:
    return user_world.align_video(
        frames.num_frames,
        predict=lambda graph: predictor.predict(state, graph),
        flow_of=lambda graph: _flow_of(frames, source, graph),
        pairs=config.pairs,
        config=config.alignment,
        known=user.known,
        dynamic_mask=user.dynamic_mask,
        ignore=user.ignore,
        depth_prior=None if prior is None else prior.depth,
        progress=run.progress("alignment"),
        cut=cut,
        keep=run.stage,
    )


def _scale_of_prior(
    log_depth: Array, prior: DepthPrior | None, fixes_scale: bool, run: stages.Run
) -> tuple[float, bool]:
    """Returns the factor to metres and whether there is one: from a metric prior, else (1, False).

    Notes by how much the scales of the frames differ, whoever fixes that of the scene.
    """
    if prior is None or prior.name == "plane":
        return 1.0, False
    scale, spread = prior_depth.scale_and_spread(np.exp(np.asarray(log_depth)), prior.depth)
    run.facts["depth_scale_spread"] = spread
    if fixes_scale or not prior.metric or not np.isfinite(spread):
        return 1.0, False
    return scale, True


def _neighbour_flow(frames: Frames, source: optical_flow.FlowSource | None) -> OpticalFlow | None:
    """The flow to the next frame, for pictures: half precision, found some frames at a time."""
    if source is None:
        return None
    first = np.arange(frames.num_frames - 1)
    pairs = np.stack([first, first + 1], axis=-1)
    vectors = np.empty((len(pairs), *frames.images.shape[1:3], 2), np.float16)
    for start in range(0, len(pairs), _FLOWS_AT_ONCE):
        part = slice(start, start + _FLOWS_AT_ONCE)
        vectors[part] = source.directed(frames, pairs[part]).flow
    weight = np.broadcast_to(np.float32(1), vectors.shape[:3])
    return OpticalFlow(pairs, vectors, weight, name=source.name)


def _flow_of(
    frames: Frames, source: optical_flow.FlowSource | None, graph: PairGraph
) -> OpticalFlow | None:
    if source is None:
        return None
    return source.directed(frames, pairing.directed_pairs(graph))
