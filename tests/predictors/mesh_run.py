"""A tiny pairwise network over virtual devices, in a process of its own (see test_network_mesh).

    python -m tests.predictors.mesh_run OUT.npz

Writes the predictions of a clip by one device and by meshes of eight, and how much of the
parameters a device of each mesh holds.
"""

import sys

import jax
import numpy as np

from align3r_jax.pipeline import as_frames
from align3r_jax.predictors.network import NetworkPredictor
from align3r_jax.structs import DepthPrior, PairGraph
from align3r_jax.weights import placement
from align3r_jax.weights.store import LoadedNetwork
from tests.networks import micro

MESHES = {"1": (1, 1), "8x1": (8, 1), "2x4": (8, 4)}  # name -> (devices, fsdp)
PAIRS = np.array([(0, 1), (1, 0), (1, 2), (2, 1), (0, 2)], np.int32)


def predict(params, frames, prior, **settings):
    """Predictions of five pairs of three frames."""
    network = LoadedNetwork(micro.ALIGN3R, params, "micro", "x", {})
    predictor = NetworkPredictor(network, pair_batch=4, precision="highest", **settings)
    state = predictor.prepare(frames, prior)
    return predictor.predict(state, PairGraph(PAIRS, 3, symmetric=False, name="test"))


def main():
    jax.config.update("jax_platforms", "cpu")
    rng = np.random.default_rng(0)
    frames = as_frames(rng.integers(0, 255, (3, 32, 48, 3)).astype(np.uint8))
    depth = rng.uniform(1, 4, (3, 32, 48)).astype(np.float32)
    prior = DepthPrior(depth, depth, None, "test", inverse=False, metric=False)
    params = micro.parameters(micro.ALIGN3R)
    placement._MIN_SIZE = 2**8  # so that parameters this small are split
    values = {}
    for name, (devices, fsdp) in MESHES.items():
        mesh = placement.make_mesh(jax.devices()[:devices], fsdp)
        placed = jax.device_put(params, placement.split_over(mesh, params))
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
        values[f"{name} held"] = held / sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        results = {"host": {}, "device": {"results": "device"}, "window": {"feature_memory": 0}}
        for kind, settings in results.items() if devices > 1 else [("host", {})]:
            found = predict(placed, frames, prior, **settings)
            for key, value in vars(found).items():
                values[f"{name} {kind} {key}"] = np.asarray(value)
    np.savez(sys.argv[1], **values)


if __name__ == "__main__":
    main()
