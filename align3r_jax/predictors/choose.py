"""Which predictor runs: a network whose weights were given, else the flow predictor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from align3r_jax.config import ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.networks.frame_features import Reuse
from align3r_jax.predictors import network_programs
from align3r_jax.predictors.equal_confidence import EqualConfidence
from align3r_jax.predictors.flow import FlowPredictor
from align3r_jax.predictors.network import NetworkPredictor
from align3r_jax.predictors.protocol import Predictor
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import DepthPrior
from align3r_jax.weights.store import LoadedNetwork


def make_predictor(
    config: ReconstructConfig,
    model: LoadedNetwork | None,
    prior: DepthPrior | None,
    flow: FlowSource | None,
    note: Callable[[str], None],
    frames_kept: int | None = None,
) -> Predictor:
    """Returns the predictor of `config.predictor`, with `config.equal_confidence` made equal.

    "auto" is the network if `model` is given, else flow. flow: the source, None for none. `note`
    receives plain sentences about the choice. frames_kept: see `NetworkPredictor`. Raises
    UserError if the network, the prior and the flow cannot work together.
    """
    if config.equal_confidence:
        plain = dataclasses.replace(config, equal_confidence=False)
        return EqualConfidence(make_predictor(plain, model, prior, flow, note, frames_kept))
    kind = config.predictor
    if kind == "auto":
        kind = "flow" if model is None else "network"
    if kind == "flow":
        if flow is None:
            raise UserError(
                "The flow predictor needs optical flow, but --flow=none was given; use --flow=dis, "
                "raft, sea_raft or files:DIR, or give network weights with --weights=DIR."
            )
        if model is not None:
            raise UserError(
                f"The flow predictor uses no weights, but {model.name} was given; drop --weights "
                "or use --predictor=network."
            )
        return FlowPredictor()
    if model is None:
        raise UserError(
            "--predictor=network needs weights: --weights=DIR (converted with "
            "experiments.convert_weights), an official file, or the shipped align3r_small."
        )
    if model.config.prior_branch and prior is None and model.config.prior_encoding == "minmax":
        raise UserError(
            f"{model.name} is an Align3R network and needs a depth prior, but --prior=none was "
            "given; use the prior it was trained with (--prior=depth_pro, depth_anything_v2_large "
            "or files:DIR), small or plane."
        )
    if not model.config.prior_branch and prior is not None:
        raise UserError(
            f"{model.name} has no prior branch (DUSt3R or MonST3R weights) and cannot use the "
            f"depth prior '{prior.name}'; use --prior=none, or Align3R weights."
        )
    if model.name == "align3r_small":
        note(
            "Predictor align3r_small: shipped toy weights, trained on procedural scenes; they "
            "clean depth but know hardly any relative pose. Not the paper's quality."
        )
    reuse: Reuse = "tokens" if config.feature_reuse == "auto" else config.feature_reuse
    return NetworkPredictor(
        model,
        network_programs.batch_size(config.pair_batch),
        config.compute_dtype,
        frames_kept=frames_kept,
        reuse=reuse,
        feature_memory=config.feature_memory,
    )
