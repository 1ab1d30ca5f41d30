"""The small networks against recorded runs: every intermediate, orientation and head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.networks import align3r
from align3r_jax.weights.tables import align3r as table
from tests.networks import recorded

pytestmark = pytest.mark.golden
TOLERANCE = 1e-5
HEAD_DIMS = (16, 32)
# bfloat16 keeps 8 bits (4e-3) and errors add up over the blocks; measured 1.1e-2.
BFLOAT16_TOLERANCE = 3e-2


def _load(golden_dir, golden_weights, name, model, stride=1):
    file = np.load(golden_dir / f"network_{name}.npz")
    seed = recorded.seed_of(file)
    state, config = recorded.weights(golden_dir, golden_weights, model, seed, HEAD_DIMS)
    batch, height, width = file["conf_1"].shape
    views = recorded.inputs(golden_weights, config, batch, stride * height, stride * width, seed)
    return file, config, table.import_state(state, config), *views


def _encode_and_decode(config, params, images, maps, dtype=jnp.float32):
    """Both views encoded as one batch, then paired."""
    net = align3r.Align3R(config, dtype, precision="highest")

    @jax.jit
    def run(params, images, maps):
        features = net.apply(
            {"params": params}, images, maps, return_intermediates=True, method="encode_frames"
        )
        first, second = features.take(slice(batch)), features.take(slice(batch, None))
        pair = net.apply(
            {"params": params}, first, second, return_intermediates=True, method="decode_pairs"
        )
        return features, pair

    batch = len(images[0])
    maps = None if maps[0] is None else np.concatenate(maps)
    return run(params, np.concatenate(images), maps)


def _check_outputs(file, pair, stride=1, tolerance=TOLERANCE):
    for view in (1, 2):
        points = getattr(pair, f"pointmap{view}")[:, ::stride, ::stride]
        confidence = getattr(pair, f"confidence{view}")[:, ::stride, ::stride]
        recorded.assert_close(points, file[f"pts3d_{view}"], tolerance, f"points {view}")
        recorded.assert_close(confidence, file[f"conf_{view}"], tolerance, f"confidence {view}")


@pytest.mark.parametrize(
    "name, model",
    [
        ("tiny_align3r_landscape", "tiny_align3r"),
        ("tiny_dust3r_dpt", "tiny_dust3r_dpt"),
        ("tiny_dust3r_linear", "tiny_dust3r_linear"),
    ],
)
def test_every_intermediate(golden_dir, golden_weights, name, model):
    file, config, params, images, maps = _load(golden_dir, golden_weights, name, model)
    features, pair = _encode_and_decode(config, params, images, maps)
    _check_outputs(file, pair)
    tokens = np.split(np.asarray(features.tokens), 2)
    for view in (1, 2):
        recorded.assert_close(tokens[view - 1], file[f"enc_{view}"], TOLERANCE, "encoder")
        stream = pair.intermediates[f"decoder{view}"]
        recorded.assert_close(stream, file[f"dec_{view}"], TOLERANCE, "decoder")
        raw = np.asarray(getattr(pair, f"raw{view}"))
        if config.head == "linear":
            raw = recorded.linear_tokens(raw, config.patch_size)
        recorded.assert_close(raw, file[f"raw_{view}"], TOLERANCE, "head")
    if "pc" in file:
        prior = np.moveaxis(features.intermediates["prior_tokens"], 1, 0)
        recorded.assert_close(prior, file["pc"], TOLERANCE, "prior branch")

    if config.prior_branch:
        _, pair = _encode_and_decode(config, params, images, maps, jnp.bfloat16)
        assert pair.pointmap1.dtype == jnp.float32
        errors = {
            raw: np.abs(np.asarray(getattr(pair, raw)) - file[f"raw_{view}"]).max()
            / np.abs(file[f"raw_{view}"]).max()
            for view, raw in ((1, "raw1"), (2, "raw2"))
        }
        print(f"bfloat16, relative to the largest value: {errors}")
        assert 1e-4 < max(errors.values()) < BFLOAT16_TOLERANCE


def test_portrait(golden_dir, golden_weights):
    file, config, params, images, maps = _load(
        golden_dir, golden_weights, "tiny_align3r_portrait", "tiny_align3r"
    )
    _, pair = _encode_and_decode(config, params, images, maps)
    _check_outputs(file, pair)


@pytest.mark.parametrize(
    "name, model",
    [("tiny_align3r_mixed", "tiny_align3r"), ("tiny_dust3r_mixed", "tiny_dust3r_dpt")],
)
def test_portrait_and_landscape_in_one_batch(golden_dir, golden_weights, name, model):
    file, config, params, images, maps = _load(golden_dir, golden_weights, name, model, stride=2)
    net = align3r.Align3R(config, precision="highest")
    run = jax.jit(
        lambda params, images, maps, shapes: net.apply(
            {"params": params},
            *images,
            *maps,
            true_shape1=shapes[0],
            true_shape2=shapes[1],
            landscape_only=True,
        )
    )
    pair = run(params, images, maps, (file["true_shape_1"], file["true_shape_2"]))
    _check_outputs(file, pair, stride=2)
