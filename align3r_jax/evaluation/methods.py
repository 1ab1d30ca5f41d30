"""What is judged: a reconstruction as a protocol asks for it, single frames, or a depth prior."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from align3r_jax import pipeline, stages
from align3r_jax.config import ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.evaluation.protocols import Running
from align3r_jax.io import preprocess, video
from align3r_jax.predictors import choose
from align3r_jax.priors import mono_depth, sources
from align3r_jax.structs import Frames, PairGraph, WorkingSize
from align3r_jax.weights.store import LoadedNetwork

_SIZE_WITHOUT_WEIGHTS = 320


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a method says of T frames; None where it says nothing.

    depth: (T, h, w) float32 > 0, any unit, NaN where missing; inverse: larger is nearer. size: how
    its pixels lie in the original frames (None: it covers all of them). world_from_cam:
    (T, 4, 4). dynamic_mask: (T, h, w) bool. facts: what ran, JSON-able. limits: sentences.
    """

    depth: np.ndarray | None = None
    world_from_cam: np.ndarray | None = None
    dynamic_mask: np.ndarray | None = None
    size: WorkingSize | None = None
    inverse: bool = False
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    limits: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks of a method, opened once for all sequences. cache_dir: of depth priors.

    prior: what `pipeline.reconstruct` takes as `prior_model`.
    """

    model: LoadedNetwork | None = None
    prior: LoadedNetwork | mono_depth.DepthModel | None = None
    flow: LoadedNetwork | None = None
    cache_dir: str | None = None

    @property
    def checksums(self) -> list[str]:
        """One per network, "none" where there is none."""
        return [
            "none" if network is None else str(getattr(network, "checksum", "not known"))
            for network in (self.model, self.prior, self.flow)
        ]


def make_frames(
    originals: Sequence[np.ndarray],
    names: Sequence[str],
    times: np.ndarray | None,
    running: Running,
    model: LoadedNetwork | None = None,
) -> Frames:
    """Returns pictures (H0, W0, 3) uint8 of one size at the working size of the protocol.

    times: (T,) seconds, None for 30 a second. Raises UserError if they are too thin or small.
    """
    size = running.size or (model.config.img_size if model else _SIZE_WITHOUT_WEIGHTS)
    plan = preprocess.plan_working_size(originals[0].shape[:2], size, crop=running.crop)
    if times is None:
        times = np.arange(len(originals)) / video.IMAGE_FPS
    working = np.stack([preprocess.to_working_size(picture, plan) for picture in originals])
    return Frames(working, np.asarray(times, np.float64), plan, tuple(names)).check()


def reconstruct(
    frames: Frames,
    originals: np.ndarray | None,
    running: Running,
    networks: Networks,
    run: stages.Run | None = None,
) -> Prediction:
    """Returns depth, cameras and masks of a video, by the settings of the protocol."""
    run = run or stages.Run()
    scene = pipeline.reconstruct(
        frames,
        model=networks.model,
        prior_model=networks.prior,
        flow_source=networks.flow,
        originals=originals,
        config=running.reconstruct,
        cache_dir=networks.cache_dir,
        run=run,
    )
    return Prediction(
        depth=np.asarray(scene.depth, np.float32),
        world_from_cam=np.asarray(scene.world_from_cam, np.float64),
        dynamic_mask=np.asarray(scene.dynamic_mask, bool),
        size=frames.size,
        facts={name: run.facts[name] for name in ("predictor", "prior", "flow")}
        | {"stages": run.records, "working_size": list(frames.size.working)},
        limits=tuple(run.limits),
    )


def single_frames(
    frames: Frames,
    originals: np.ndarray | None,
    running: Running,
    networks: Networks,
    run: stages.Run | None = None,
) -> Prediction:
    """Returns the depth of every frame by itself: z of view 1 of the frame paired with itself.

    Both orders of such a pair are the same pair, so their average is either. Without weights the
    depth prior itself is what is returned. Raises UserError if there is neither.
    """
    run = run or stages.Run()
    config, model = running.reconstruct, networks.model
    spec, models = sources.prior_source(config, model, networks.prior, run.limit)
    prior = mono_depth.estimate_depth(
        frames, originals, spec, cache_dir=networks.cache_dir, models=models
    )
    if model is None:
        if prior is None or prior.name == "plane":
            raise UserError(
                "Depth of single frames needs network weights (--weights=...) or a depth prior "
                "to judge by itself (--prior=depth_pro, files:DIR, ...); got neither."
            )
        run.limit(f"Without weights the depth prior itself is judged: {prior.name}.")
        facts = {"predictor": "none", "prior": prior.name}
        return Prediction(np.asarray(prior.native, np.float32), inverse=prior.inverse, facts=facts,
                          limits=tuple(run.limits))  # fmt: skip
    predictor = choose.make_predictor(_as_network(config), model, prior, None, run.limit)
    itself = np.repeat(np.arange(frames.num_frames, dtype=np.int32)[:, None], 2, axis=1)
    graph = PairGraph(itself, frames.num_frames, symmetric=False, name="itself")
    predicted = predictor.predict(predictor.prepare(frames, prior, None), graph)
    return Prediction(
        depth=np.asarray(predicted.pointmap1[..., 2], np.float32),
        size=frames.size,
        facts={
            "predictor": predictor.name,
            "prior": "none" if prior is None else prior.name,
            "working_size": list(frames.size.working),
        },
        limits=tuple(run.limits),
    )


def _as_network(config: ReconstructConfig) -> ReconstructConfig:
    # Confidences take no part in the depth of a single frame.
    return dataclasses.replace(config, predictor="network", equal_confidence=False)
