"""A run so small that many fit into a test: four parameters fitted to a line, with evaluation."""

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.training import loop, monitor, optimizer, partitioning, state, step

CONFIG = optimizer.OptimizerConfig(lr=0.05, warmup=2, total=12)
TX = optimizer.make_optimizer(CONFIG)
TRUE = np.array([1.0, -2.0, 0.5], np.float32)


def loss(params, batch, key):
    noise = 0.01 * jax.random.normal(key, batch["x"].shape)
    error = batch["x"] @ params["w"] + params["b"] - batch["y"] + noise[:, 0]
    return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}


def batch_of(number):
    rng = np.random.default_rng(number)
    x = rng.normal(size=(8, 3)).astype(np.float32)
    return {"x": x, "y": x @ TRUE}


def init_state():
    return state.create({"w": jnp.zeros(3), "b": jnp.zeros(())}, TX)


STEP = step.make_step(loss, TX, 0.9)
_scores = jax.jit(lambda params, batch: {"loss": loss(params, batch, jax.random.key(0))[0]})
SETS = {"near": [batch_of(1000 + k) for k in range(4)], "far": [batch_of(2000)]}


def evaluate(params):
    return monitor.evaluate(_scores, params, SETS)


def train(folder, total, *, batch_of=batch_of, step=STEP, position=None, pictures=None, **changes):
    """Runs to `total`; log every 3, save every 5, evaluate every 4 unless changed."""
    values = {
        "steps": total, "batch_size": 8, "log_every": 3, "save_every": 5, "evaluate_every": 4,
        "tensorboard": False,
    } | changes  # fmt: skip
    abstract = jax.eval_shape(init_state)
    shardings = partitioning.state_shardings(partitioning.make_mesh(1), abstract)
    return loop.run(
        settings=loop.LoopSettings(**values),
        start=jax.jit(init_state, out_shardings=shardings),
        abstract=abstract,
        step=step,
        batch_of=batch_of,
        shardings=shardings,
        folder=folder,
        config={"lr": CONFIG.lr},
        position=position,
        evaluate=evaluate,
        pictures=pictures,
    )
