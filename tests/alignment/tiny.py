"""A tiny random alignment problem with every kind of input; follows the precision in force."""

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.config import AlignmentConfig
from align3r_jax.structs import AlignmentVariables, OpticalFlow, PairPredictions

T, H, W = 4, 5, 7
PAIRS = np.array([[0, 1], [1, 2], [2, 3], [1, 0], [2, 1], [3, 2], [0, 3]], np.int32)
CONFIG = AlignmentConfig(
    shared_focal=False, optimise_principal_point=True, optimise_adaptors=True, flow_pixel_cut=3.0
)


def problem(symmetric_flow=True, seed=0):
    """(predictions, variables, optical flow, dynamic mask) of the graph `PAIRS`."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape)

    predictions = PairPredictions(
        pointmap1=normal(len(PAIRS), H, W, 3) + [0, 0, 3.0],
        pointmap2=normal(len(PAIRS), H, W, 3) + [0, 0, 3.0],
        confidence1=rng.uniform(1.1, 9, size=(len(PAIRS), H, W)),
        confidence2=rng.uniform(1.1, 9, size=(len(PAIRS), H, W)),
    )
    variables = AlignmentVariables(
        log_depth=0.3 * normal(T, H, W) + 1,
        frame_quaternion=0.1 * normal(T, 4) + [0, 0, 0, 1.0],
        frame_translation=0.1 * normal(T, 3),
        log_focal=20 * np.log(rng.uniform(6, 8, size=T)),
        principal_point=0.05 * normal(T, 2),
        pair_quaternion=normal(len(PAIRS), 4),
        pair_translation=0.3 * normal(len(PAIRS), 3),
        pair_log_scale=0.3 * normal(len(PAIRS)),
        pair_adaptor=normal(len(PAIRS), 2),
    )
    fields = PAIRS[:6] if symmetric_flow else np.concatenate([PAIRS[:3], PAIRS[:2, ::-1]])
    optical_flow = OpticalFlow(
        pairs=fields,
        flow=2 * normal(len(fields), H, W, 2),
        weight=rng.uniform(0, 1, size=(len(fields), H, W)),
    )
    optical_flow = optical_flow.replace(
        flow=jnp.asarray(optical_flow.flow), weight=jnp.asarray(optical_flow.weight)
    )
    dynamic = jnp.asarray(rng.uniform(size=(T, H, W)) < 0.2)
    return *jax.tree.map(jnp.asarray, (predictions, variables)), optical_flow, dynamic
