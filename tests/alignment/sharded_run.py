"""Alignments over a mesh of virtual devices, in a process of their own (see test_sharded).

    python -m tests.alignment.sharded_run \
        {whole,step} CLIPS PAIRS SOLVER[,SOLVER] OUT.npz [COORDINATOR COUNT INDEX]

whole: writes the leaves of the result on the mesh and of `batch.align` on one device. step: the
same of the loss and its gradient, or of two steps of Gauss-Newton. Both with the names of all
collectives in the compiled program.
COORDINATOR: address of process 0 of COUNT processes, of which this is INDEX.
"""

import dataclasses
import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

jax.config.update("jax_platforms", "cpu")
if len(sys.argv) > 6:
    jax.distributed.initialize(sys.argv[6], int(sys.argv[7]), int(sys.argv[8]))

from align3r_jax.alignment import batch, objective, sharded, solve  # noqa: E402
from align3r_jax.alignment import variables as variables_lib  # noqa: E402
from align3r_jax.alignment.solvers import gauss_newton  # noqa: E402
from align3r_jax.config import AlignmentConfig  # noqa: E402
from align3r_jax.geometry import rigid  # noqa: E402
from align3r_jax.structs import AlignmentPriors, PairGraph  # noqa: E402
from tests.alignment import consistent, tiny  # noqa: E402

ADAM = AlignmentConfig(
    shared_focal=False, iterations=6, flow_start=0.0, flow_gate=0.0, depth_regulariser_weight=0.1
)
GAUSS_NEWTON = AlignmentConfig(
    solver="gauss_newton", gauss_newton_steps=4, depth_rounds=4, lattice_stride=2,
    flow_start=0.0, flow_weight=0.02, depth_regulariser_weight=0.05,
)  # fmt: skip
COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(")


def clips(count, config):
    """Clips for the solver of the config; Gauss-Newton's steps are steady only near a minimum."""
    if config.solver == "adam":
        return random_clips(count)
    found = []
    for seed in range(count):
        predictions, priors = consistent.scene(seed)
        found.append((predictions, consistent.GRAPH, priors.replace(dynamic_mask=None)))
    return found


def random_clips(count):
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


def step(predictions, graph, priors, config, degrees, axis=None):
    """Loss and gradient of every clip at its start, or two steps of Gauss-Newton."""

    def one(predictions, graph, priors):
        start = priors.start
        problem = objective.prepare(
            predictions, graph, priors.flow, start, None, config,
            priors.frame_valid, priors.pair_valid, axis=axis,
        )  # fmt: skip
        if config.solver == "adam":
            (total, _), gradient = objective.value_and_gradient(start, problem, config)
            return total, gradient
        state = gauss_newton.initial_state(start, problem, config)
        free = variables_lib.trainable(start, config)
        state, trace = gauss_newton.scan(
            state, problem, 0, config=config, trainable=free, num_steps=2, degrees=degrees
        )
        return state.variables, trace

    return jax.vmap(one)(predictions, graph, priors)


def step_on(mesh, config, degrees):
    """The same over a mesh, jitted."""

    def whole(*parts):
        return jax.shard_map(
            lambda *local: step(*local, config, degrees, axis=sharded.PAIRS),
            mesh=mesh,
            in_specs=sharded._layout(*parts),
            out_specs=PartitionSpec(sharded.CLIPS),
            check_vma=False,
        )(*parts)

    return jax.jit(whole)


def in_first_frame(found, priors, config):
    """The result with everything seen from frame 0: Gauss-Newton lets the world's frame drift."""
    variables, trace = found

    def one(variables, frame_valid, pair_valid):
        clean = variables_lib.without_invalid(variables, frame_valid, pair_valid)
        geometry = variables_lib.decode(clean, config, variables.log_depth.shape[1:], pair_valid)
        back = rigid.invert(geometry.world_from_cam[0])
        moved = rigid.rotate(back[:3, :3], geometry.pair_offset) + back[:3, 3]
        valid = pair_valid[:, None, None]
        return dataclasses.replace(
            geometry,
            world_from_cam=rigid.compose(back, geometry.world_from_cam),
            pair_matrix=jnp.where(valid, rigid.compose(back[:3, :3], geometry.pair_matrix), 0),
            pair_offset=jnp.where(valid[..., 0], moved, 0),
        )

    return jax.jit(jax.vmap(one))(variables, priors.frame_valid, priors.pair_valid), trace


def compare(kind, config, mesh):
    """(collectives, leaves on the mesh, leaves on one device), None where this is not process 0."""
    num_clips, num_pairs = (mesh.shape[axis] for axis in (sharded.CLIPS, sharded.PAIRS))
    stacked = batch.pad_and_stack(clips(max(2, num_clips), config), multiple=num_pairs)
    parts = sharded.place(stacked, mesh)
    degrees = solve.degrees(stacked.graph, stacked.priors, config)
    on_mesh = sharded.compiled if kind == "whole" else step_on
    compiled = on_mesh(mesh, config, degrees).lower(*parts).compile()
    result = sharded.collect(compiled(*parts))
    names = COLLECTIVE.findall(compiled.as_text())
    if jax.process_index() > 0:
        return None
    if kind == "whole":
        alone = batch.align(stacked, config)
    else:
        alone = jax.jit(functools.partial(step, config=config, degrees=degrees))(*stacked[:3])
    if config.solver == "gauss_newton":
        result, alone = (in_first_frame(r, stacked.priors, config) for r in (result, alone))
    result, alone = (jax.tree.leaves(jax.device_get(r)) for r in (result, alone))
    return names, result, alone


def main():
    kind, num_clips, num_pairs, solvers, out = sys.argv[1:6]
    mesh = sharded.make_mesh(int(num_clips), int(num_pairs))
    values = {}
    for config in (ADAM, GAUSS_NEWTON):
        if config.solver not in solvers.split(","):
            continue
        # Gauss-Newton in float64: rounding alone moves a scene of so few pixels by 2e-5.
        with jax.enable_x64(config.solver == "gauss_newton"):
            compared = compare(kind, config, mesh)
        if compared is None:
            continue
        names, result, alone = compared
        values[f"{config.solver}_collectives"] = np.array(names, str)
        for k, (got, expected) in enumerate(zip(result, alone, strict=True)):
            values |= {f"{config.solver}_mesh_{k}": got, f"{config.solver}_alone_{k}": expected}
    if values:
        np.savez(out, **values)


if __name__ == "__main__":
    main()
