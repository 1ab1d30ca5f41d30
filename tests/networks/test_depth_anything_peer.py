"""Depth Anything V2 against the PyTorch network of `transformers`, at random weights and sizes."""

import jax
import numpy as np
import pytest

from align3r_jax.networks import depth_anything
from align3r_jax.weights.tables import depth_anything as table

pytestmark = pytest.mark.peer
TOLERANCE = 2e-4  # of the largest logit
BACKBONE = {
    "hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 3, "image_size": 126,
    "patch_size": 14, "out_indices": [2, 3, 5, 6], "apply_layernorm": True,
    "reshape_hidden_states": False,
}  # fmt: skip
HEAD = {
    "reassemble_hidden_size": 96, "patch_size": 14, "neck_hidden_sizes": [12, 24, 40, 56],
    "fusion_hidden_size": 32, "head_hidden_size": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs requirements-peer.txt")


def _peer(torch, seed, max_depth):
    """A network of `transformers` with random weights, and its config.json."""
    transformers = pytest.importorskip("transformers", reason="needs requirements-peer.txt")
    config = transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(**BACKBONE),
        depth_estimation_type="relative" if max_depth is None else "metric",
        max_depth=max_depth,
        **HEAD,
    )
    model = transformers.DepthAnythingForDepthEstimation(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "lambda" in name:
                value.copy_(0.5 + 0.1 * noise)
            elif value.ndim > 1:
                value.copy_(noise / value[0].numel() ** 0.5 if value.ndim != 3 else 0.1 * noise)
            else:
                value.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
    return model, config.to_dict()


@pytest.mark.parametrize("max_depth", [None, 20])
def test_same_depth_at_sizes_drawn_now(torch, max_depth):
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    model, arguments = _peer(torch, seed, max_depth)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    # The pinned version resizes positions to a size, not by a factor.
    config = table.infer_config(state, {**arguments, "pos_embed_mode": "size"})
    assert config.max_depth == max_depth and config.hooks == (1, 2, 4, 5)
    params = table.import_state(state, config)
    net = depth_anything.DepthAnything(config, precision="highest")
    run = jax.jit(lambda p, x: net.apply({"params": p}, x))

    grids = [(9, 9), (9, int(rng.integers(10, 16)))] + rng.integers(1, 16, (4, 2)).tolist()
    for rows, columns in grids:
        images = rng.normal(size=(int(rng.integers(1, 4)), 14 * rows, 14 * columns, 3))
        images = images.astype(np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        expected = expected.predicted_depth.numpy()
        got = run(params, images)
        assert got.depth.shape == expected.shape
        scale = max(1.0, float(np.abs(got.logits).max())) * (1 if max_depth is None else max_depth)
        error = np.abs(got.depth - expected).max() / scale
        print(f"{14 * rows} x {14 * columns}: {error:.1e}")
        assert error <= TOLERANCE, (rows, columns)
        assert np.std(expected) > 1e-3 or (expected == 0).all()


def test_offset_positions_are_another_network(torch):
    """The choice of `pos_embed_mode` shows on any grid but the learnt one."""
    model, arguments = _peer(torch, 0, None)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    config = table.infer_config(state, arguments)
    assert config.pos_embed_mode == "offset"
    params = table.import_state(state, config)
    net = depth_anything.DepthAnything(config, precision="highest")
    for grid, same in (((9, 9), True), ((6, 11), False)):
        images = np.random.default_rng(0).normal(size=(1, 14 * grid[0], 14 * grid[1], 3))
        images = images.astype(np.float32)
        with torch.no_grad():
            features = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        error = np.abs(
            net.apply({"params": params}, images).depth - features.predicted_depth.numpy()
        ).max()
        assert (error < TOLERANCE) == same, (grid, error)
