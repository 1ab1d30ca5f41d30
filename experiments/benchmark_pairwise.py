"""The pairwise network's stages of `experiments.benchmark`: encoder, decoders, heads.

They run through the predictor of `predictors.choose`, as in the main flow, after one batch that is
not measured. Where all batches would take too long, some are run and multiplied.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from align3r_jax import config as config_lib
from align3r_jax import plan as plan_lib
from align3r_jax.config import NetworkConfig, ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r, heads
from align3r_jax.networks import cost as cost_lib
from align3r_jax.networks.frame_features import Reuse
from align3r_jax.predictors import choose, network_programs
from align3r_jax.structs import DepthPrior, Frames, PairGraph
from align3r_jax.weights import store
from align3r_jax.weights.store import LoadedNetwork
from experiments import benchmark_measure, benchmark_rows, benchmark_stages
from experiments.benchmark_measure import Ceilings, Cost, Sections
from experiments.benchmark_rows import Row
from experiments.benchmark_stages import Flow

SMALL, FLOW = "small", "flow"
_SHIPPED = "align3r_small"
_FORMULA = "formula (networks.cost)"


@dataclasses.dataclass(frozen=True)
class Budget:
    """What of the network stages is run. pair_batch: frames or pairs in a batch. seconds: stages
    that would take longer, by their operations at the measured ceiling, run `batches` batches only;
    infinite: everything is run."""

    pair_batch: int = 4
    seconds: float = 30.0
    batches: int = 1

    def run(self, cost: Cost, batches: int, ceilings: Ceilings) -> int:
        """Returns how many of the batches are run."""
        if cost.flops * batches / ceilings.flops <= self.seconds:
            return batches
        return min(batches, self.batches)


def preset_name(name: str) -> str:
    """Returns "flow", or the network of `NETWORK_PRESETS` that `name` is or begins, alone.

    Raises UserError for other names.
    """
    if name == FLOW:
        return name
    if name == SMALL:
        return _SHIPPED
    known = config_lib.NETWORK_PRESETS
    found = [name] if name in known else [preset for preset in known if preset.startswith(name)]
    if len(found) != 1 or not name:
        raise UserError(
            f"The preset '{name}' is {'not one alone' if found else 'unknown'}; expected "
            f"{SMALL}, {FLOW} or a network: {', '.join(known)}."
        )
    return found[0]


def config_of(preset: str) -> NetworkConfig | None:
    """Returns the network's settings, None for the flow predictor."""
    return None if preset == FLOW else config_lib.NETWORK_PRESETS[preset]


def load(preset: str) -> LoadedNetwork | None:
    """Returns the shipped network, one of random weights, or None for the flow predictor."""
    if preset == FLOW:
        return None
    if preset == _SHIPPED:
        return store.load(preset)
    config = config_lib.NETWORK_PRESETS[preset]
    params = jax.jit(lambda key: align3r.init_params(config, key))(jax.random.key(0))
    return LoadedNetwork(config, params, preset, "random", {})


def rows(
    model: LoadedNetwork, flow: Flow, budget: Budget, dtype: str, ceilings: Ceilings
) -> list[Row]:
    """Returns encoder, decoders and heads on the frames and graphs of a run of the main flow."""
    config, size = model.config, budget.pair_batch
    frames, prior = flow.frames, flow.prior if model.config.prior_branch else None
    count = frames.num_frames
    settings = ReconstructConfig(predictor="network", pair_batch=size, compute_dtype=dtype)
    plan = plan_lib.make_plan(count, *frames.images.shape[1:3], settings, network=config)
    settings = dataclasses.replace(settings, feature_reuse=plan.reuse)
    costs = _costs(model, frames, prior, size, dtype, plan.reuse)
    encoded = math.ceil(count / size)
    decoded = sum(math.ceil(graph.num_pairs / size) for graph in flow.graphs)
    encode_run = budget.run(costs["encode"], encoded, ceilings)
    encode_run = max(encode_run, min(encoded, math.ceil(2 / size)))  # a pair at least
    decode_run = budget.run(costs["decode"], decoded, ceilings)

    predictor = choose.make_predictor(settings, model, prior, None, lambda sentence: None)
    with Sections() as sections:
        # Waited for: what still runs would be measured with what follows.
        warm = predictor.prepare(*benchmark_stages.first_frames(frames, prior, size), None)
        jax.block_until_ready(warm)
        del warm
        prepare = sections.measured("encode", predictor.prepare)
        state = prepare(*benchmark_stages.first_frames(frames, prior, encode_run * size), None)
        graphs = _graphs(flow.graphs, min(count, encode_run * size), decode_run, size)
        jax.block_until_ready(predictor.predict(state, _cut(graphs[0], size)))
        predict = sections.measured("decode pairs", predictor.predict)
        for graph in graphs:
            predict(state, graph)
    pairs = sum(graph.num_pairs for graph in flow.graphs)
    # Small videos may lack the pairs among their first frames that were asked for.
    decode_run = sum(math.ceil(graph.num_pairs / size) for graph in graphs)
    spent = sections.found
    by_stage = (
        ("encode", count, "frame", costs["encode"], encode_run, encoded),
        ("decode pairs", pairs, "pair", costs["decode"], decode_run, decoded),
    )
    found = [
        benchmark_rows.of_spent(
            stage, items, item, spent[stage], run=run, batches=batches,
            **benchmark_rows.of_cost(cost),
        )
        for stage, items, item, cost, run, batches in by_stage
    ]  # fmt: skip
    alone = benchmark_measure.measure(
        heads_program(config, _grid(frames, config)), *_head_inputs(model, frames, size), repeats=1
    )
    found.append(
        benchmark_rows.of_measured(
            benchmark_rows.HEADS,
            pairs,
            "pair",
            alone,
            batches=decoded,
            part_of="decode pairs",
            flops=2 * size * cost_lib.head(config, *frames.images.shape[1:3], _head_form()),
            counted=_FORMULA,
        )  # fmt: skip
    )
    return found


def heads_program(config: NetworkConfig, grid: tuple[int, int]) -> Any:
    """Returns f(params1, params2, tokens1, tokens2) -> both heads' maps, as the decoder runs them.

    tokens: those of the four hooks, (B, h * w, C) each.
    """
    module: Any = heads.make_head(config)

    def run(params1: Any, params2: Any, tokens1: Any, tokens2: Any) -> Any:
        first = module.apply({"params": params1}, tokens1, grid)
        return first, module.apply({"params": params2}, tokens2, grid)

    return run


def _costs(
    model: LoadedNetwork,
    frames: Frames,
    prior: DepthPrior | None,
    size: int,
    dtype: str,
    reuse: Reuse,
) -> dict[str, Cost]:
    """What one batch of the two programs costs; operations by formula.

    The compiler's analysis counts a loop's body once, and the heads loop over strips.
    """
    height, width = frames.images.shape[1:3]
    maps = has_prior = None
    if prior is not None:
        maps = jax.ShapeDtypeStruct((size, height, width, 3), jnp.float32)
        has_prior = jax.ShapeDtypeStruct((size,), jnp.bool_)
    images = jax.ShapeDtypeStruct((size, height, width, 3), jnp.uint8)
    params = jax.eval_shape(
        lambda tree: network_programs.stored_weights(tree, dtype),
        benchmark_measure.shapes(model.params),
    )
    encode = network_programs.encode_program(model.config, dtype, reuse=reuse)
    features = jax.eval_shape(encode, params, images, maps, has_prior)
    views = [jax.eval_shape(lambda f, k=k: f.as_view(k), features) for k in (1, 2)]
    decode = network_programs.decode_program(model.config, dtype)
    encoded = benchmark_measure.program_cost(encode, params, images, maps, has_prior)
    decoded = benchmark_measure.program_cost(decode, params, *views)
    one_frame = cost_lib.encode(model.config, height, width, reuse)
    one_pair = cost_lib.decode(model.config, height, width, reuse, _head_form())
    return {
        "encode": dataclasses.replace(encoded, flops=size * one_frame, counted=_FORMULA),
        "decode": dataclasses.replace(decoded, flops=size * one_pair, counted=_FORMULA),
    }


def _head_form() -> str:
    """The form that `layers.dpt.Dpt` takes by itself."""
    return "cheap" if jax.default_backend() == "cpu" else "direct"


def _head_inputs(model: LoadedNetwork, frames: Frames, size: int) -> tuple[Any, ...]:
    config = model.config
    rows, columns = _grid(frames, config)
    widths = [config.dec_embed_dim if hook else config.enc_embed_dim for hook in config.dpt_hooks]
    keys = jax.random.split(jax.random.key(0), len(widths))
    tokens = [jax.random.normal(key, (size, rows * columns, w)) for key, w in zip(keys, widths)]
    head1, head2 = (jax.tree.map(jnp.asarray, model.params[name]) for name in ("head1", "head2"))
    return head1, head2, tokens, tokens


def _grid(frames: Frames, config: NetworkConfig) -> tuple[int, int]:
    height, width = frames.images.shape[1:3]
    return height // config.patch_size, width // config.patch_size


def _graphs(graphs: Sequence[PairGraph], frames: int, batches: int, size: int) -> list[PairGraph]:
    """The graphs' pairs among the first frames, so many batches of them."""
    found: list[PairGraph] = []
    for graph in graphs:
        inside = (graph.pairs < frames).all(axis=1)
        left = batches - sum(math.ceil(part.num_pairs / size) for part in found)
        if inside.any() and left > 0:
            chosen = dataclasses.replace(graph, pairs=graph.pairs[inside], symmetric=False)
            found.append(_cut(chosen, left * size))
    return found


def _cut(graph: PairGraph, pairs: int) -> PairGraph:
    return dataclasses.replace(graph, pairs=graph.pairs[:pairs], symmetric=False)
