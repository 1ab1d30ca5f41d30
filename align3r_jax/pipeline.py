"""The main flow: frames -> depth prior -> pair prediction -> flow -> alignment -> Scene.

Each stage is a pure function of what came before; this file only puts them in order.
"""

from __future__ import annotations

import numpy as np

from align3r_jax import pairing, stages
from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import finish, hierarchical
from align3r_jax.config import ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.predictors import choose, refine
from align3r_jax.predictors.protocol import Predictor
from align3r_jax.priors import mono_depth, optical_flow, sources
from align3r_jax.structs import (
    Array,
    DepthPrior,
    Frames,
    OpticalFlow,
    PairGraph,
    Scene,
    WorkingSize,
)
from align3r_jax.weights import kinds
from align3r_jax.weights.store import LoadedNetwork


def reconstruct(
    frames: Frames | Array,
    *,
    model: LoadedNetwork | None = None,
    predictor: Predictor | None = None,
    prior: DepthPrior | None = None,
    prior_model: LoadedNetwork | mono_depth.DepthModel | None = None,
    flow_source: LoadedNetwork | optical_flow.FlowSource | None = None,
    originals: Array | None = None,
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
    run: collects times, memory and limits, and resumes.
    Raises UserError for frames, priors or weights that cannot work together.
    """
    frames = as_frames(frames)
    run = run or stages.Run()
    if model is not None:
        kinds.check_wanted(kinds.get(model.kind), kinds.PAIRWISE, model.name)
    originals = frames.images if originals is None else originals

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
    source = sources.flow_source(config.flow, frames, flow_source, run.limit)
    predictor = predictor or choose.make_predictor(config, model, prior, source, run.limit)
    run.facts |= {
        "predictor": predictor.name,
        "prior": prior.name if prior is not None else "none",
        "flow": source.name if source is not None else "none",
    }
    state = run.stage("frame features", lambda: predictor.prepare(frames, prior, source))
    for sentence in predictor.limits(state):
        run.limit(sentence)

    if is_hierarchical(config, frames.num_frames):
        result = run.stage(
            "alignment", lambda: _align_hierarchical(frames, predictor, state, source, config, run)
        )
    else:
        result = _align_flat(frames, predictor, state, source, config, run)
    if result.failed:
        run.limit(
            "The alignment loss became NaN or infinite; the result is that of the last good "
            "iteration. Try a smaller learning rate or another prior."
        )
    run.facts["pairs"] = np.asarray(result.pairs).tolist()
    run.products |= {"prior": prior, "flow": _neighbour_flow(frames, source)}
    return finish.to_scene(result, frames, config.alignment)


def is_hierarchical(config: ReconstructConfig, num_frames: int) -> bool:
    """Whether key frames are aligned first, then clips, rather than all frames at once."""
    if config.pairs.mode == "auto":
        return num_frames > config.pairs.flat_max_frames
    return config.pairs.mode == "hierarchical" and num_frames > 4


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
    config: ReconstructConfig,
    run: stages.Run,
) -> align_lib.AlignResult:
    graph = pairing.make_pairs(frames.num_frames, config.pairs)
    predictions = run.stage("pair prediction", lambda: predictor.predict(state, graph))
    predictions.check(graph)
    flow = run.stage("optical flow", lambda: _flow_of(frames, source, graph))
    return run.stage(
        "alignment",
        lambda: align_lib.align(
            predictions, graph, flow, config.alignment, progress=run.progress("alignment")
        ),
    )


def _align_hierarchical(
    frames: Frames,
    predictor: Predictor,
    state: object,
    source: optical_flow.FlowSource | None,
    config: ReconstructConfig,
    run: stages.Run,
) -> align_lib.AlignResult:
    return hierarchical.align_video(
        frames.num_frames,
        predict=lambda graph: predictor.predict(state, graph),
        flow_of=lambda graph: _flow_of(frames, source, graph),
        pairs=config.pairs,
        config=config.alignment,
        progress=run.progress("alignment"),
    )


def _neighbour_flow(frames: Frames, source: optical_flow.FlowSource | None) -> OpticalFlow | None:
    if source is None:
        return None
    first = np.arange(frames.num_frames - 1)
    return source.directed(frames, np.stack([first, first + 1], axis=-1))


def _flow_of(
    frames: Frames, source: optical_flow.FlowSource | None, graph: PairGraph
) -> OpticalFlow | None:
    if source is None:
        return None
    return source.directed(frames, pairing.directed_pairs(graph))
