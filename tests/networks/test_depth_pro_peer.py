"""Depth Pro against the PyTorch network of `transformers`: random weights, shapes drawn now."""

import jax
import numpy as np
import pytest

from align3r_jax.networks import depth_pro
from align3r_jax.priors import depth_pro as prior
from align3r_jax.weights.tables import depth_pro as table

pytestmark = pytest.mark.peer
TOLERANCE = 2e-5  # of the largest inverse depth; measured up to 3e-6
GRIDS = ((128, 16, 1), (256, 32, 1), (256, 16, 2))  # window, patch, merge padding


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="needs requirements-peer.txt")
    return pytest.importorskip("transformers", reason="needs requirements-peer.txt")


def _peer(transformers, fill, rng, window, patch, padding):
    """A network of `transformers` with random weights, its state dict and config.json."""
    import torch

    depth = int(rng.integers(2, 6))
    early, late = sorted(rng.integers(0, depth, 2).tolist())
    fusion = 8 * int(rng.integers(2, 6))
    heads = int(rng.choice([2, 4]))
    encoder = {
        "model_type": "dinov2", "hidden_size": 16 * heads, "num_hidden_layers": depth,
        "num_attention_heads": heads, "image_size": window, "patch_size": patch,
        "mlp_ratio": int(rng.integers(2, 5)), "use_mask_token": bool(rng.integers(2)),
    }  # fmt: skip
    config = transformers.DepthProConfig(
        fusion_hidden_size=fusion,
        patch_size=window,
        intermediate_hook_ids=[late, early],
        intermediate_feature_dims=[fusion, fusion],
        scaled_images_feature_dims=(8 * rng.integers(1, 7, 3)).tolist(),
        merge_padding_value=padding,
        use_fov_model=True,
        image_model_config=encoder,
        patch_model_config=encoder,
        fov_model_config=encoder,
    )
    model = transformers.DepthProForDepthEstimation(config).eval()
    seed = int(rng.integers(2**31))
    state = {
        name: fill.fill(name, tuple(value.shape), seed)
        for name, value in model.state_dict().items()
    }
    state["head.layers.4.bias"] = np.full(1, 0.3, np.float32)  # the last ReLU mostly open
    state["fov_model.head.layers.4.bias"] = np.zeros(1, np.float32)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model, state, config.to_dict()


@pytest.mark.parametrize(("window", "patch", "padding"), GRIDS)
def test_same_depth_and_field_of_view(transformers, golden_weights, window, patch, padding):
    import torch

    seed = int(np.random.SeedSequence().generate_state(1)[0])
    rng = np.random.default_rng(seed)
    model, state, arguments = _peer(transformers, golden_weights, rng, window, patch, padding)
    config = table.infer_config(state, arguments)
    assert (config.window, config.patch_size, config.merge_padding) == (window, patch, padding)
    print(f"seed {seed}: {config}")
    params = table.import_state(state, config)
    side = config.image_size
    images = golden_weights.image("peer", (int(rng.integers(1, 3)), side, side, 3), seed)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    network = depth_pro.DepthPro(config, precision="highest")
    got = jax.jit(lambda p, x: network.apply({"params": p}, x))(params, images)

    inverse = expected.predicted_depth.numpy()
    assert (inverse > 0).mean() > 0.2 and np.std(inverse) > 1e-3
    error = np.abs(got.inverse_depth - inverse).max() / np.abs(inverse).max()
    fov = expected.field_of_view.numpy()
    print(f"inverse depth {error:.1e}, field of view {np.abs(got.fov - fov).max():.1e} degrees")
    assert error <= TOLERANCE
    np.testing.assert_allclose(got.fov, fov, atol=1e-5)


def test_same_preparation_and_metric_depth():
    """Against PyTorch's own resizing, at sizes drawn now."""
    torch = pytest.importorskip("torch", reason="needs requirements-peer.txt")
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    rng = np.random.default_rng(seed)
    print(f"seed {seed}")
    for _ in range(5):
        side, height, width = (int(n) for n in rng.integers(40, 400, 3))
        images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        scaled = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        expected = _resized(torch, scaled, (side, side)).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(prior.preprocess(images, side), expected, atol=2e-6)

        canonical = rng.random((2, side, side), np.float32)
        focal = rng.uniform(0.5, 2, 2).astype(np.float32) * width
        scaled = torch.from_numpy(canonical * (width / focal)[:, None, None])[:, None]
        expected = _resized(torch, scaled, (height, width))[:, 0].clamp(1e-4, 1e4).numpy()
        got = 1 / prior.metric_depth(canonical, focal, (height, width))
        np.testing.assert_allclose(got, expected, atol=5e-6)


def _resized(torch, maps, shape):
    return torch.nn.functional.interpolate(maps, shape, mode="bilinear", align_corners=False)
