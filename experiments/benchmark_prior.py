"""The prior stage of `experiments.benchmark` where a monocular network makes it.

Published networks have random weights here: values do not change the cost.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from align3r_jax.errors import UserError
from align3r_jax.networks import depth_anything, depth_pro
from align3r_jax.priors import depth_anything as depth_anything_prior
from align3r_jax.priors import mono_depth, shipped, sources
from align3r_jax.weights import kinds
from align3r_jax.weights.store import LoadedNetwork
from experiments import benchmark_measure, benchmark_rows, benchmark_stages
from experiments.benchmark_measure import Ceilings, Cost, Sections
from experiments.benchmark_pairwise import Budget
from experiments.benchmark_rows import Row

SMALL = "small"
PLAIN = ("auto", "plane", "none")
_PRESETS = depth_anything.DEPTH_ANYTHING_PRESETS | depth_pro.DEPTH_PRO_PRESETS


def check(spec: str) -> str:
    """Returns `spec`. Raises UserError unless it names a prior that can be measured."""
    known = (*PLAIN, SMALL, *_PRESETS)
    if spec not in known:
        raise UserError(f"--prior={spec} is unknown; known are {', '.join(known)}.")
    return spec


def row(
    spec: str, flow: benchmark_stages.Flow, budget: Budget, dtype: str, ceilings: Ceilings
) -> Row:
    """Returns the row of a depth network on the original frames of a run of the main flow."""
    cost, models = None, shipped.mono_models()
    if spec != SMALL:
        loaded = _random_network(spec)
        cost = _cost(loaded, flow.originals.shape[1:3])
        settings = {"compute_dtype": dtype} if dtype != "float32" else {}
        models = {spec: sources.depth_model(loaded, **settings)}
    count = flow.frames.num_frames
    run = count if cost is None else budget.run(cost, count, ceilings)
    # Both times the same frames: the batch, which is compiled, follows from their number.
    frames, _ = benchmark_stages.first_frames(flow.frames, None, run)
    with Sections() as sections:
        for name in ("unmeasured", "prior"):
            estimate = sections.measured(name, mono_depth.estimate_depth)
            estimate(frames, flow.originals[:run], spec, models=models)
    spent = sections.found["prior"]
    more = {} if cost is None else {"flops": cost.flops, "counted": cost.counted}
    compiled = sections.found["unmeasured"].compile_seconds
    return benchmark_rows.of_spent(
        "prior", count, "frame", spent, run=run, batches=count, compile_seconds=compiled, **more
    )


def _random_network(name: str) -> LoadedNetwork:
    config = _PRESETS[name]
    kind = kinds.of_config(config)
    params = jax.jit(lambda key: kind.network_module.init_params(config, key))(jax.random.key(0))
    # Depth is cut off at 0: random weights should be above it.
    params = jax.tree.map(lambda leaf: leaf + 1 if leaf.shape == (1,) else leaf, params)
    return LoadedNetwork(config, params, name, "random", {}, kind.name)


def _cost(loaded: LoadedNetwork, shape: tuple[int, ...]) -> Cost:
    """What one image costs."""
    module: Any
    if isinstance(loaded.config, depth_anything.DepthAnythingConfig):
        module = depth_anything.DepthAnything(loaded.config)
        size = depth_anything_prior.network_size((shape[0], shape[1]))
    else:
        module = depth_pro.DepthPro(loaded.config)
        size = (loaded.config.image_size,) * 2
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return benchmark_measure.program_cost(
        lambda params, images: module.apply({"params": params}, images),
        benchmark_measure.shapes(loaded.params),
        image,
    )
