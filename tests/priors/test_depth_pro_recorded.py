"""Depth Pro at its released geometry against recorded runs: preprocessing, network, metric depth.

One module, because the network is compiled once for all of it.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.networks import depth_pro as network
from align3r_jax.priors import depth_pro
from tests.networks import depth_pro_runs as runs
from tests.networks import recorded

pytestmark = pytest.mark.golden
prepare = jax.jit(depth_pro.preprocess, static_argnums=1)
finish = jax.jit(depth_pro.metric_depth, static_argnums=2)


@pytest.fixture(scope="module")
def reduced(golden_dir, golden_weights):
    """The recorded run, and the compiled network."""
    run = runs.load_run(golden_dir, golden_weights, "reduced")
    return run, runs.compiled("reduced", run.config)


def picture(fill, name, shape, seed):
    """A uint8 image as the recordings use them."""
    return np.clip(np.round((fill.image(name, (*shape, 3), seed) + 1) * 127.5), 0, 255).astype(
        np.uint8
    )


def test_preprocessing(golden_dir, golden_weights):
    file = np.load(golden_dir / "monodepth_aux.npz")
    cases = [key for key in file if key.startswith("pre_depthpro/")]
    assert cases
    for key in cases:
        shape = tuple(int(n) for n in re.findall(r"\d+", key.split("/")[1]))
        image = picture(golden_weights, "rgb", shape, recorded.seed_of(file))
        side = network.DepthProConfig().image_size
        got = np.asarray(prepare(image[None], side))[0]
        got = got.transpose(2, 0, 1)[:, 7::48, 11::48]
        np.testing.assert_allclose(got, file[key], atol=2e-6)


def test_network(reduced):
    run, forward = reduced
    assert run.config.window == network.DepthProConfig().window
    runs.check_run("reduced", run, forward, 1e-5, 1e-5, 1e-3)


def test_metric_depth(golden_dir, golden_weights, reduced):
    """Two sizes of images, focal given and estimated."""
    file = np.load(golden_dir / "monodepth_depthpro_reduced.npz")
    run, forward = reduced
    cases = {key.split("/")[0] for key in file if key.startswith("infer_")}
    outputs = {}
    assert cases
    for case in sorted(cases):
        height, width, focal = re.fullmatch(r"infer_(\d+)x(\d+)_(.+)", case).groups()
        shape = (int(height), int(width))
        if shape not in outputs:
            image = picture(golden_weights, "dp_rgb", shape, recorded.seed_of(file))
            outputs[shape] = forward(run.params, prepare(image[None], run.config.image_size))
        out = outputs[shape]
        if focal == "none":
            focal = depth_pro.focal_of(out.fov, shape[1])
        focal = jnp.broadcast_to(jnp.float32(focal), (1,))
        np.testing.assert_allclose(focal, [file[f"{case}/focallength_px"]], rtol=1e-5)
        depth = np.asarray(finish(out.inverse_depth, focal, shape), np.float64)
        step = -(-shape[0] // file[f"{case}/depth"].shape[0])
        expected = 1 / np.asarray(file[f"{case}/depth"], np.float64)
        np.testing.assert_allclose(1 / depth[0, ::step, ::step], expected, atol=1e-5)
        low, high, _ = file[f"{case}/depth_stats"]
        np.testing.assert_allclose(
            [1 / depth.min(), 1 / depth.max()], [1 / low, 1 / high], atol=1e-5
        )
