"""Depth Pro as a prior: focals, batches, memory, refusals."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax import structs
from align3r_jax.config import NETWORK_PRESETS
from align3r_jax.errors import UserError
from align3r_jax.networks import depth_pro as network
from align3r_jax.priors import depth_pro, mono_depth
from align3r_jax.weights.store import LoadedNetwork
from tests.networks import depth_pro_runs as runs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def loaded():
    config, params = runs.micro()
    return LoadedNetwork(config, params, "depth_pro", "abc", {}, kind="depth_pro")


@pytest.fixture(scope="module")
def frames():
    """(3, 24, 40, 3) uint8, all different."""
    ramp = np.linspace(0, 200, 40).astype(np.uint8)
    return np.stack([np.tile(np.roll(ramp, 9 * i)[None, :, None], (24, 1, 3)) for i in range(3)])


@pytest.fixture(scope="module")
def depth(loaded, frames):
    return depth_pro.DepthProModel(loaded, batch=2)(frames)


def test_depth_and_focal_scale_together(loaded, frames, depth):
    """With the estimated focal given the depth stays; a given one changes it in proportion."""
    assert depth.depth.dtype == np.float32 and depth.focal.shape == (3,)
    inside = (depth.depth > 1.1e-4) & (depth.depth < 5e3)
    for focal in (depth.focal, jnp.float32(2 * depth.focal[0]), 37):
        given = depth_pro.DepthProModel(loaded, focal=focal, batch=2)(frames)
        ratio = np.broadcast_to(np.asarray(focal, np.float64), (3,)) / depth.focal
        np.testing.assert_allclose(given.focal, np.broadcast_to(focal, (3,)), rtol=1e-6)
        np.testing.assert_allclose(
            given.depth[inside], (depth.depth * ratio[:, None, None])[inside], rtol=1e-3
        )


def test_batches_and_sharding_change_nothing(loaded, frames, depth):
    mesh = jax.make_mesh((1,), ("frames",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("frames"))
    model = depth_pro.DepthProModel(loaded, batch=2, sharding=sharding)
    assert model.frames_at_once(3) == 2 and model.frames_at_once(1) == 1
    maps = model(frames)
    np.testing.assert_allclose(1 / maps.depth, 1 / depth.depth, atol=1e-6)
    np.testing.assert_allclose(maps.focal, depth.focal, rtol=1e-6)


SHARDED = """
    import jax, numpy as np
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    from align3r_jax.networks import depth_pro as network
    from align3r_jax.priors import depth_pro
    from align3r_jax.weights.store import LoadedNetwork
    from tests.networks import depth_pro_runs as runs

    config, params = runs.micro()
    loaded = LoadedNetwork(config, params, "depth_pro", "abc", {}, kind="depth_pro")
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), np.uint8)
    mesh = jax.make_mesh((4,), ("frames",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("frames"))
    alone = depth_pro.DepthProModel(loaded, batch=3)(frames)
    model = depth_pro.DepthProModel(loaded, sharding=sharding)
    assert model.frames_at_once(3) == 4
    spread = model(frames)
    np.testing.assert_allclose(1 / spread.depth, 1 / alone.depth, atol=1e-5)
    np.testing.assert_allclose(spread.focal, alone.focal, rtol=1e-5)

    side = config.image_size
    images = jax.ShapeDtypeStruct((4, side, side, 3), np.float32, sharding=sharding)
    everywhere = jax.NamedSharding(mesh, jax.P())
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), params
    )
    for chunk in (None, 8):
        module = network.DepthPro(config, window_chunk=chunk)
        run = jax.jit(lambda p, x: module.apply({"params": p}, x)[:2])
        text = run.lower(abstract, images).compile().as_text()
        for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
            assert word not in text, (chunk, word)
"""


@pytest.mark.slow
def test_four_devices_share_the_frames_without_talking():
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)],
        check=True, timeout=300, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_as_a_prior_of_a_clip(loaded, frames):
    """Through the interface that the reconstruction uses: metres, focal of the working size."""
    size = structs.WorkingSize((24, 40), (24, 40), (0, 0), (24, 40))
    clip = structs.Frames(frames, np.arange(3.0), size, ("a", "b", "c"))
    model = depth_pro.DepthProModel(loaded, focal=50.0, batch=2)
    prior = mono_depth.estimate_depth(clip, None, "depth_pro", models={"depth_pro": model})
    assert prior.metric and prior.depth.shape == (3, 24, 40)
    np.testing.assert_allclose(prior.focal, 50.0)


def test_settings_are_part_of_the_checksum(loaded):
    sums = {
        depth_pro.DepthProModel(loaded, **settings).checksum
        for settings in ({}, {"focal": 50}, {"focal": 51}, {"compute_dtype": "bfloat16"})
    }
    assert len(sums) == 4 and all(checksum.startswith("abc") for checksum in sums)


def test_memory_decides_frames_and_chunks():
    """Estimates, and what the compiler reported for the released model on CPUs."""
    config = network.DEPTH_PRO_PRESETS["depth_pro"]
    assert depth_pro.frame_bytes(config) == pytest.approx(3.50e9, rel=0.1)
    assert depth_pro.frame_bytes(config, 5) == pytest.approx(2.42e9, rel=0.1)
    assert depth_pro.plan_memory(config, depth_pro.MAX_MEMORY) == (1, None)
    assert depth_pro.plan_memory(config, 16 * 10**9) == (4, None)
    frames, chunk = depth_pro.plan_memory(config, 3 * 10**9)
    assert frames == 1 and 1 < chunk < 35
    assert depth_pro.frame_bytes(config, chunk) <= 3e9 < depth_pro.frame_bytes(config, chunk + 1)
    with pytest.raises(UserError, match="2.4 GB .* allowed are 1.0 GB"):
        depth_pro.plan_memory(config, 10**9)


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "chunk"), [(1, None), (1, 5), (2, None)])
def test_memory_estimate_against_the_compiler(frames, chunk):
    config = network.DEPTH_PRO_PRESETS["depth_pro"]
    module = network.DepthPro(config, window_chunk=chunk)
    side = config.image_size
    images = jax.ShapeDtypeStruct((frames, side, side, 3), jnp.float32)
    run = jax.jit(lambda p, x: module.apply({"params": p}, x)[:2])
    compiled = run.lower(network.abstract_params(config), images).compile()
    needed = compiled.memory_analysis().temp_size_in_bytes
    assert frames * depth_pro.frame_bytes(config, chunk) == pytest.approx(needed, rel=0.1)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.full((1, 16, 16, 3), np.nan, np.float32), "NaN"),
        (np.zeros((1, 16, 16, 3), np.float32), "float32; expected"),
        (np.zeros((16, 16, 3), np.uint8), "expected .T, H, W, 3."),
        (np.zeros((0, 16, 16, 3), np.uint8), "at least one"),
        (np.zeros((1, 1, 1, 3), np.uint8), "1 x 1 pixels .* too small"),
        (np.zeros((2, 1, 400, 3), np.uint8), "1 x 400 pixels .* too small"),
    ],
)
def test_unusable_images_are_refused(loaded, images, words):
    with pytest.raises(UserError, match=words):
        depth_pro.DepthProModel(loaded)(images)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"focal": 0.0}, "positive"),
        ({"focal": np.nan}, "positive"),
        ({"focal": np.ones((2, 2))}, "positive numbers of pixels"),
        ({"batch": 0}, "batch=0"),
        ({"max_memory": 1000}, "allowed are 0.0 GB"),
    ],
)
def test_unusable_settings_are_refused(loaded, settings, words):
    with pytest.raises(UserError, match=words):
        depth_pro.DepthProModel(loaded, **settings)


def test_focals_of_another_clip_are_refused(loaded, frames):
    with pytest.raises(UserError, match="2 focals were given for 3 frames"):
        depth_pro.DepthProModel(loaded, focal=[40.0, 50.0])(frames)


@pytest.mark.parametrize(
    ("path", "words"),
    [(("head", "out", "bias"), "not finite for 2 of 2"), (("fov", "head_2", "bias"), "no camera")],
)
def test_broken_weights_are_a_sentence(loaded, frames, path, words):
    params = jax.tree.map(np.array, loaded.params)
    part, layer, leaf = path
    params[part][layer][leaf][:] = np.nan if part == "head" else 400.0
    model = depth_pro.DepthProModel(dataclasses.replace(loaded, params=params), batch=2)
    with pytest.raises(UserError, match=words):
        model(frames[:2])


def test_other_weights_are_refused(loaded):
    other = LoadedNetwork(NETWORK_PRESETS["tiny_align3r"], {}, "align3r", "abc", {})
    with pytest.raises(UserError, match="align3r holds .* pairwise network"):
        depth_pro.DepthProModel(other)
