"""Who waits for whom: the share of the time that steps wait for data, on this machine's clock."""

import time

import jax
import jax.numpy as jnp

from align3r_jax.training import meter

_PAUSE = 0.03


def _waiting(step, batch_of, steps=8):
    """data_wait of some steps after the first, which compiles."""
    account = meter.Meter(step, 1)
    state, key = jnp.zeros(()), jax.random.key(0)
    for number in range(steps + 1):
        batch = account.batch(batch_of, number)
        state, _ = account.step(state, batch, key)
        if number == 0:
            account.take(1.0)
    jax.block_until_ready(state)
    return account.take(1.0)["data_wait"]


def test_slow_data_is_waited_for_and_slow_steps_are_not():
    @jax.jit
    def quick(state, batch, key):
        return state + batch, {"loss": state}

    def late(number):
        time.sleep(_PAUSE)
        return jnp.float32(number)

    assert _waiting(quick, late) > 0.7

    @jax.jit
    def slow(state, batch, key):
        matrix = jnp.full((300, 300), 1e-3) + batch
        matrix = jax.lax.fori_loop(0, 60, lambda _, m: jnp.tanh(m @ matrix), matrix)
        return state + matrix[0, 0], {"loss": state + matrix[0, 0]}

    assert _waiting(slow, jnp.float32) < 0.3
