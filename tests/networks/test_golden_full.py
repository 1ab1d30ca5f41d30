"""The ViT-L networks against recorded runs. Slow: 2.4 GB of weights each."""

import jax
import numpy as np
import pytest

from align3r_jax.networks import align3r
from align3r_jax.weights.tables import align3r as table
from tests.networks import recorded

pytestmark = [pytest.mark.slow, pytest.mark.golden]
TOLERANCE = 2e-5
STATS_TOLERANCE = 2e-5


def _run(net, params, images, maps):
    features = [
        net.apply(
            {"params": params}, image, prior, return_intermediates=True, method="encode_frames"
        )
        for image, prior in zip(images, maps)
    ]
    return features, net.apply(
        {"params": params}, *features, return_intermediates=True, method="decode_pairs"
    )


def _check_stats(file, arrays):
    for name, (mean, deviation, largest) in zip(file["stat_names"], file["stats"]):
        array = np.asarray(arrays[str(name)], np.float64)
        bar = STATS_TOLERANCE * largest
        assert abs(array.mean() - mean) <= bar, name
        assert abs(array.std(ddof=1) - deviation) <= bar, name
        assert abs(np.abs(array).max() - largest) <= bar, name


@pytest.mark.parametrize("name", ["align3r", "dust3r", "dust3r_linear224"])
def test_full_network(golden_dir, golden_weights, name):
    file = np.load(golden_dir / f"network_full_{name}.npz")
    seed = recorded.seed_of(file)
    state, config = recorded.weights(golden_dir, golden_weights, f"full_{name}", seed, (64, 64))
    params = jax.tree.map(jax.numpy.asarray, table.import_state(state, config))
    del state
    height, width = 8 * file["pts3d_1"].shape[1], 8 * file["pts3d_1"].shape[2]
    images, maps = recorded.inputs(golden_weights, config, 1, height, width, seed)
    net = align3r.Align3R(config, precision="highest")
    features, pair = jax.jit(lambda p, i, m: _run(net, p, i, m))(params, images, maps)

    arrays = {}
    for view in (1, 2):
        frame = features[view - 1]
        arrays[f"patch_{view}"] = frame.intermediates["patches"]
        arrays[f"enc_{view}"] = frame.tokens
        if config.prior_branch:
            for k, tokens in enumerate(np.moveaxis(frame.intermediates["prior_tokens"], 1, 0)):
                arrays[f"pc_{k}_view{view}"] = tokens
        for k, tokens in enumerate(pair.intermediates[f"decoder{view}"]):
            arrays[f"dec_{view}_{k:02d}"] = tokens
        arrays[f"raw_{view}"] = getattr(pair, f"raw{view}")
        arrays[f"pts3d_{view}"] = getattr(pair, f"pointmap{view}")
        arrays[f"conf_{view}"] = getattr(pair, f"confidence{view}")

    for name in file:
        if name in ("stat_names", "stats", "seed"):
            continue
        if name == "sample_pc_last":
            last = config.num_prior_blocks
            got = np.concatenate([arrays[f"pc_{last}_view{view}"] for view in (1, 2)])
            got = got[:, ::37, ::16]
        elif name.startswith("sample_raw_"):
            raw = np.asarray(arrays[name.removeprefix("sample_")])
            got = recorded.linear_tokens(raw, config.patch_size)[:, ::37, ::16]
        elif name.startswith("sample_"):
            got = np.asarray(arrays[name.removeprefix("sample_")])[:, ::37, ::16]
        else:
            got = np.asarray(arrays[name])[:, ::8, ::8]
        recorded.assert_close(got, file[name], TOLERANCE, name)
    _check_stats(file, arrays)
