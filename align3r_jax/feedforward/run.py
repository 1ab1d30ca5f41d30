"""Real-time mode over a whole video that is there already: frames in, `Scene` out.

engine = open_engine(...);  results = each frame in turn;  scene = to_scene(results, frames)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from align3r_jax import stages
from align3r_jax.config import ReconstructConfig
from align3r_jax.feedforward import engines
from align3r_jax.feedforward.anchor import FrameResult
from align3r_jax.predictors.protocol import Predictor
from align3r_jax.priors import mono_depth, sources
from align3r_jax.priors.mono_depth import DepthModel
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import Array, DepthPrior, Frames, Scene
from align3r_jax.weights.store import LoadedNetwork

# (frame as a video of one, its original picture or None) -> its prior.
PriorOf = Callable[[Frames, Array | None], DepthPrior | None]


def prior_maker(
    config: ReconstructConfig,
    model: LoadedNetwork | None,
    given: LoadedNetwork | DepthModel | None,
    note: Callable[[str], None],
) -> tuple[str, PriorOf]:
    """Returns the prior's name and what finds it frame by frame; arguments of `prior_source`."""
    spec, models = sources.prior_source(config, model, given, note)
    opened = _kept_open(models)

    def prior_of(frame: Frames, original: Array | None) -> DepthPrior | None:
        originals = None if original is None else original[None]
        return mono_depth.estimate_depth(frame, originals, spec, models=opened)

    return spec, prior_of


def of_frame(frames: Frames, index: int) -> Frames:
    """Returns one frame as a video of its own."""
    chosen = slice(index, index + 1)
    return Frames(frames.images[chosen], frames.times[chosen], frames.size, (frames.names[index],))


def reconstruct(
    frames: Frames,
    *,
    model: LoadedNetwork | None,
    predictor: Predictor | None,
    prior: DepthPrior | None,
    prior_model: LoadedNetwork | DepthModel | None,
    flow_source: LoadedNetwork | FlowSource | None,
    originals: Array | None,
    config: ReconstructConfig,
    run: stages.Run,
) -> Scene:
    """Returns the scene; arguments as `pipeline.reconstruct`. Every frame is worked on alone.

    predictor: its `prepare` may look at all frames (the oracle of tests); networks and flow do not.
    """
    source = sources.flow_source(config.flow, frames, flow_source, run.limit)
    if prior is not None:
        name, whole = prior.name, prior

        def given(index: int) -> DepthPrior | None:
            return prior_of_frame(whole, index)

    else:
        name, prior_of = prior_maker(config, model, prior_model, run.limit)

        def given(index: int) -> DepthPrior | None:
            original = None if originals is None else np.asarray(originals[index])
            return prior_of(of_frame(frames, index), original)

    engine: engines.Engine
    if predictor is None:
        engine = engines.make(config, model=model, source=source, size=frames.size)
    else:
        state = predictor.prepare(frames, prior, source)
        masks_from = source is not None
        engine = engines.predictor_engine(predictor, state, frames.num_frames, config, masks_from)
    run.facts |= {"predictor": engine.name, "prior": name} | {
        "flow": source.name if source is not None else "none", "solver": "none",
    }  # fmt: skip
    progress = run.progress("frames")
    results, priors = [], []

    def work() -> list[FrameResult]:
        for index, image in enumerate(np.asarray(frames.images)):
            priors.append(given(index))
            results.append(engine.push(image, priors[-1]))
            progress(index + 1, frames.num_frames, 0.0)
        return results

    run.stage("real-time mode", work, keep=False)
    lost = [t for t, result in enumerate(results) if not bool(result.good)]
    note_lost(lost, len(results), run.limit)
    run.facts |= facts(results)
    run.products |= {"prior": _stacked(priors), "flow": None}
    metric = priors[0] is not None and priors[0].metric and engine.name == "flow"
    return to_scene(results, frames, metric=metric)


def to_scene(results: Sequence[FrameResult], frames: Frames, *, metric: bool = False) -> Scene:
    """Returns the results of all frames as a scene; nothing is aligned, so there are no losses."""

    def stack(name: str, dtype: Any) -> np.ndarray:
        return np.stack([np.asarray(getattr(result, name), dtype) for result in results])

    return Scene(
        depth=stack("depth", np.float32),
        world_from_cam=stack("world_from_cam", np.float32),
        intrinsics=stack("intrinsics", np.float32),
        confidence=stack("confidence", np.float32),
        dynamic_mask=stack("dynamic_mask", bool),
        colours=np.asarray(frames.images),
        times=np.asarray(frames.times),
        pair_losses=np.zeros(0, np.float32),
        trace={},
        size=frames.size,
        names=frames.names,
        metric=metric,
    )


def facts(results: Sequence[FrameResult]) -> dict[str, Any]:
    """Returns what `summary.json` says of the mode: the anchor of every frame and its pairs."""
    anchors = [int(result.anchor) for result in results]
    return {
        "plan": {"mode": "feedforward"},
        "anchors": anchors,
        "pairs": [pair for t, a in enumerate(anchors) if t != a for pair in ([a, t], [t, a])],
    }


def note_lost(lost: Sequence[int], num_frames: int, note: Callable[[str], None]) -> None:
    """Says which frames have no camera of their own: `lost`, ascending numbers."""
    if lost:
        note(
            f"The camera of {len(lost)} of {num_frames} frames was not found (the first is frame "
            f"{lost[0]}); they have that of the frame before, and confidence 1."
        )


def _kept_open(models: Mapping[str, DepthModel]) -> Mapping[str, DepthModel]:
    """The networks loaded now: `sources.NetworkPrior` forgets its own after every call."""
    return {
        name: model.open(model.load()) if isinstance(model, sources.NetworkPrior) else model
        for name, model in models.items()
    }


def prior_of_frame(prior: DepthPrior, index: int) -> DepthPrior:
    """Returns the prior of one frame of a video."""
    chosen = slice(index, index + 1)
    focal = None if prior.focal is None else np.asarray(prior.focal)[chosen]
    return dataclasses.replace(
        prior, native=prior.native[chosen], depth=prior.depth[chosen], focal=focal
    )


def _stacked(priors: Sequence[DepthPrior | None]) -> DepthPrior | None:
    found = [prior for prior in priors if prior is not None]
    if not found:
        return None
    focals = [prior.focal for prior in found if prior.focal is not None]
    return dataclasses.replace(
        found[0],
        native=np.concatenate([prior.native for prior in found]),
        depth=np.concatenate([prior.depth for prior in found]),
        focal=np.concatenate(focals) if len(focals) == len(found) else None,
    )
