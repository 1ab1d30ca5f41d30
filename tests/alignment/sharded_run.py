"""One alignment over a mesh of virtual devices, in a process of its own (see test_sharded).

    python -m tests.alignment.sharded_run {whole,step} CLIPS PAIRS OUT.npz [COORDINATOR COUNT INDEX]

whole: writes the leaves of the result on the mesh and of `batch.align` on one device. step: the
same of the loss and its gradient. Both with the names of all collectives in the compiled program.
COORDINATOR: address of process 0 of COUNT processes, of which this is INDEX.
"""

import re
import sys

import jax
import numpy as np
from jax.sharding import PartitionSpec

jax.config.update("jax_platforms", "cpu")
if len(sys.argv) > 5:
    jax.distributed.initialize(sys.argv[5], int(sys.argv[6]), int(sys.argv[7]))

from align3r_jax.alignment import batch, objective, sharded  # noqa: E402
from align3r_jax.config import AlignmentConfig  # noqa: E402
from align3r_jax.structs import AlignmentPriors, PairGraph  # noqa: E402
from tests.alignment import tiny  # noqa: E402

CONFIG = AlignmentConfig(
    shared_focal=False, iterations=6, flow_start=0.0, flow_gate=0.0, depth_regulariser_weight=0.1
)
COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(")


def clips(count):
    """Tiny clips of different content and, every other one, a frame and its pairs less."""
    found = []
    for seed in range(count):
        predictions, variables, flow, _ = tiny.problem(seed=seed)
        frames, pairs = tiny.T, tiny.PAIRS
        if seed % 2:
            rows = np.flatnonzero((pairs < tiny.T - 1).all(-1))
            fields = np.flatnonzero((flow.pairs < tiny.T - 1).all(-1))
            predictions = jax.tree.map(lambda a, rows=rows: a[rows], predictions)
            cut = {
                name: value[rows] if name.startswith("pair") else value[: tiny.T - 1]
                for name, value in vars(variables).items()
            }
            variables, pairs, frames = variables.replace(**cut), pairs[rows], tiny.T - 1
            flow = flow.replace(
                pairs=flow.pairs[fields], flow=flow.flow[fields], weight=flow.weight[fields]
            )
        graph = PairGraph(pairs, frames, symmetric=False, name="tiny")
        found.append((predictions, graph, AlignmentPriors(flow=flow, start=variables)))
    return found


def step(predictions, graph, priors, axis=None):
    """Loss and gradient of every clip at its start."""

    def one(predictions, graph, priors):
        problem = objective.prepare(
            predictions, graph, priors.flow, priors.start, None, CONFIG,
            priors.frame_valid, priors.pair_valid, axis=axis,
        )  # fmt: skip
        (total, _), gradient = objective.value_and_gradient(priors.start, problem, CONFIG)
        return total, gradient

    return jax.vmap(one)(predictions, graph, priors)


def step_on(mesh):
    """The same over a mesh, jitted."""

    def whole(*parts):
        return jax.shard_map(
            lambda *local: step(*local, axis=sharded.PAIRS),
            mesh=mesh,
            in_specs=sharded._layout(*parts),
            out_specs=PartitionSpec(sharded.CLIPS),
            check_vma=False,
        )(*parts)

    return jax.jit(whole)


def main():
    kind, num_clips, num_pairs, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    stacked = batch.pad_and_stack(clips(max(2, num_clips)), multiple=num_pairs)
    mesh = sharded.make_mesh(num_clips, num_pairs)
    parts = sharded.place(stacked, mesh)
    function = sharded.compiled(mesh, CONFIG) if kind == "whole" else step_on(mesh)
    compiled = function.lower(*parts).compile()
    result = jax.tree.leaves(sharded.collect(compiled(*parts)))
    if jax.process_index() > 0:
        return
    if kind == "whole":
        alone = batch.align(stacked, CONFIG)
    else:
        alone = jax.jit(step)(stacked.predictions, stacked.graph, stacked.priors)
    values = {"collectives": np.array(COLLECTIVE.findall(compiled.as_text()), str)}
    for k, (got, expected) in enumerate(zip(result, jax.tree.leaves(alone), strict=True)):
        values |= {f"mesh_{k}": got, f"alone_{k}": np.asarray(expected)}
    np.savez(out, **values)


if __name__ == "__main__":
    main()
