"""A few training steps on meshes of virtual devices, in processes of their own.

    python -m tests.training.sharded_run {toy,network} OUT.npz [COORDINATOR COUNT INDEX]

Writes the losses and the parameters after three steps on one device ("alone") and on every mesh
of eight devices ("8x1", "2x4", and "2x4 half" with parameters gathered in bfloat16), the largest
number of bytes that a device holds of the state, and the bytes of what is gathered in a step.
COORDINATOR: address of process 0 of COUNT processes, of which this is INDEX.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_platforms", "cpu")
if len(sys.argv) > 3:
    jax.distributed.initialize(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))

from jax.experimental import multihost_utils  # noqa: E402

from align3r_jax.networks import align3r  # noqa: E402
from align3r_jax.training import optimizer, partitioning, state, step, tasks  # noqa: E402
from experiments import compiled_program  # noqa: E402
from tests.training import tiny  # noqa: E402

STEPS, ROWS = 3, 16
CONFIG = optimizer.OptimizerConfig(lr=1e-2, warmup=1, total=10, accumulate=2, frozen=("frozen/.*",))
NETWORK = tiny.PLAIN  # its head is large enough to be split


def toy():
    """Parameters, a loss and a batch of step -> arrays that compile in a moment."""
    rng = np.random.default_rng(0)
    params = {
        "frozen": {"kernel": rng.normal(size=(8, 64)).astype(np.float32)},
        "large": {"kernel": 0.1 * rng.normal(size=(64, 256)).astype(np.float32)},
        "small": {"kernel": 0.1 * rng.normal(size=(256, 1)).astype(np.float32)},
    }

    def loss_fn(params, batch, key):
        hidden = jnp.tanh(batch["x"] @ params["frozen"]["kernel"])
        hidden = jnp.tanh(hidden @ params["large"]["kernel"])
        scale = 1 + 0.1 * jax.random.uniform(key)
        error = hidden @ params["small"]["kernel"] - scale * batch["x"][:, :1]
        return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}

    def batch_of(number):
        return {"x": np.random.default_rng(number).normal(size=(ROWS, 8)).astype(np.float32)}

    return params, loss_fn, batch_of, CONFIG


def network():
    """The same of the pairwise network, both orders of every pair, Align3R's encoder frozen."""
    config = dataclasses.replace(CONFIG, frozen="align3r")
    params = tiny.parameters(align3r.abstract_params(NETWORK))
    loss_fn = tasks.pairwise_loss(NETWORK, symmetrise=True)
    return params, loss_fn, lambda n: tiny.from_files(tiny.rendered(ROWS, seed=n)), config


def gathered_bytes(advance, current, batch, kind):
    """What the program of a step gathers. Of few rows a compiler would gather the activations."""
    many = 512 if kind == "toy" else 1
    batch = {
        k: jax.ShapeDtypeStruct((many * len(v), *v.shape[1:]), v.dtype) for k, v in batch.items()
    }
    program = advance.lower(current, batch, jax.random.key(0)).compile().as_text()
    found = compiled_program.collectives(program)
    return sum(c.times * c.bytes for c in found if c.kind == "all-gather")


def main():
    kind, out = sys.argv[1:3]
    params, loss_fn, batch_of, config = {"toy": toy, "network": network}[kind]()
    tx = optimizer.make_optimizer(config, ROWS)
    create = functools.partial(state.create, optimizer=tx)
    results = {}

    def record(name, advance, current, place, fetch):
        values = []
        for number in range(STEPS):
            current, details = advance(current, place(batch_of(number)), jax.random.key(number))
            values.append([float(details["loss"]), float(details["grad_norm"])])
        results[f"{name}/steps"] = np.array(values)
        for k, leaf in enumerate(jax.tree.leaves(fetch((current.params, current.average)))):
            results[f"{name}/leaf_{k:03d}"] = leaf
        held = {}
        for leaf in jax.tree.leaves(current):
            for shard in leaf.addressable_shards:
                held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
        results[f"{name}/bytes"] = np.array(max(held.values()))

    record("alone", step.make_step(loss_fn, tx, 0.9), create(params), lambda b: b, jax.device_get)
    for data, fsdp, half in ((8, 1, ""), (2, 4, ""), (2, 4, " half")):
        mesh = partitioning.make_mesh(data, fsdp)
        places = partitioning.state_shardings(mesh, jax.eval_shape(create, params))
        first = jax.jit(create, out_shardings=places)(params)
        advance = step.make_step(
            loss_fn, tx, 0.9, places, partitioning.batch_sharding(mesh),
            gather_dtype=jnp.bfloat16 if half else None,
        )  # fmt: skip
        share = ROWS // jax.process_count()
        rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)

        def place(batch, mesh=mesh, rows=rows):
            return partitioning.global_batch(mesh, {k: v[rows] for k, v in batch.items()})

        fetch = functools.partial(multihost_utils.process_allgather, tiled=True)
        name = f"{data}x{fsdp}{half}"
        results[f"{name}/gathered"] = np.array(gathered_bytes(advance, first, batch_of(0), kind))
        record(name, advance, first, place, fetch)
    if jax.process_index() == 0:
        np.savez(out, **results)


if __name__ == "__main__":
    main()
