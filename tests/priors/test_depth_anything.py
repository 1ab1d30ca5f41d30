"""Depth Anything as a prior: images in and maps out as recorded, batches, bad input."""

import dataclasses
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from align3r_jax.config import NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.io import preprocess
from align3r_jax.networks import depth_anything as network
from align3r_jax.priors import depth_anything, mono_depth, prior_map
from align3r_jax.structs import Frames
from align3r_jax.weights.store import LoadedNetwork

CONFIG = network.DepthAnythingConfig(
    embed_dim=16, depth=2, num_heads=2, grid=5, hooks=(0, 0, 1, 1), layer_dims=(4, 4, 8, 8),
    feature_dim=8, last_dim=4,
)  # fmt: skip
SHAPE = (39, 54)
ROOT = Path(__file__).parents[2]
ROUTES = {"pil": "pillow", "cv2": "opencv"}


@pytest.fixture(scope="module")
def recorded(golden_dir):
    return np.load(golden_dir / "monodepth_aux.npz")


def _seed(recorded) -> int:
    return int(recorded["seed"]) if "seed" in recorded else 0


def _image(weights, shape, seed):
    waves = weights.image("rgb", (*shape, 3), seed)
    return np.clip(np.round((waves + 1) * 127.5), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def loaded() -> LoadedNetwork:
    """A tiny network whose depth varies and is positive nearly everywhere."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        noise = rng.standard_normal(leaf.shape, dtype=np.float32)
        return noise / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 1 + 0.1 * noise

    params = jax.tree.map(draw, network.abstract_params(CONFIG))
    return LoadedNetwork(CONFIG, params, "tiny", "abc", {}, "depth_anything")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 255, (5, 3, 6, 3), np.uint8)
    return coarse.repeat(13, axis=1).repeat(9, axis=2)


@pytest.fixture
def small_target(monkeypatch):
    """Images of 39 x 54 are seen at 42 x 56 instead of 518 x 714: the tests stay quick."""
    monkeypatch.setattr(depth_anything, "TARGET", 42)


# ---- images in, maps out


@pytest.mark.golden
def test_sizes_and_pixels_match_both_references(recorded, golden_weights):
    assert len(recorded["pre/sizes"])
    for height, width, *sizes in recorded["pre/sizes"].tolist():
        assert depth_anything.network_size((height, width), "pillow") == tuple(sizes[:2])
        assert depth_anything.network_size((height, width), "opencv") == tuple(sizes[2:])
    for key in recorded.files:
        library, _, size = key.removeprefix("pre_").partition("/")
        if not key.startswith("pre_") or library not in ROUTES:
            continue
        shape = tuple(int(side) for side in size.split("x"))
        image = _image(golden_weights, shape, _seed(recorded))
        got = depth_anything.preprocess(image, ROUTES[library])
        assert got.dtype == np.float32 and got.shape[:2] == depth_anything.network_size(
            shape, ROUTES[library]
        )
        sample = got.transpose(2, 0, 1)[:, ::16, ::16]
        assert sample.shape == recorded[key].shape, key
        # One grey level is 0.017: none may differ.
        assert np.abs(sample - recorded[key]).max() <= 2e-6, key


@pytest.mark.parametrize(
    "shape, pillow, opencv",
    [
        ((375, 1242), (518, 1722), (518, 1722)),
        ((480, 854), (518, 924), (518, 924)),
        ((384, 512), (392, 518), (518, 686)),
        ((320, 1024), (168, 518), (518, 1652)),
    ],
)
def test_sizes_of_usual_videos(shape, pillow, opencv):
    assert depth_anything.network_size(shape, "pillow") == pillow
    assert depth_anything.network_size(shape, "opencv") == opencv
    assert depth_anything.network_size(shape[::-1], "pillow") == pillow[::-1]
    with pytest.raises(UserError, match="too long and thin"):
        depth_anything.network_size((30, 4000), "opencv")


@pytest.mark.golden
def test_maps_return_to_the_image_as_in_both_references(recorded, golden_weights):
    for key in (key for key in recorded.files if key.startswith("post/")):
        kind, sizes = key.removeprefix("post/").rsplit("_", 3)[0], key.rsplit("_", 3)[1:]
        source, target = (tuple(map(int, size.split("x"))) for size in (sizes[0], sizes[2]))
        depth = _depth_map(golden_weights, source, _seed(recorded))
        route = {"bicubic": "pillow", "bilinear_ac": "opencv"}[kind]
        got = np.asarray(depth_anything.postprocess(depth[None], target, route))[0, ::4, ::4]
        assert got.shape == recorded[key].shape
        assert np.abs(got - recorded[key]).max() <= 1e-5 * np.abs(recorded[key]).max(), key


def _depth_map(weights, shape, seed, sky=False):
    depth = np.float32(4) * np.exp(1.2 * weights.image("depth", (*shape, 1), seed)[..., 0]).astype(
        np.float32
    )
    if sky:
        depth[: shape[0] // 10] = 1e4
    return depth


# ---- what Align3R makes of the map


@pytest.mark.golden
def test_point_maps_are_those_of_align3r(recorded, golden_weights):
    """The map is Z as it is, inverse depth or not; the focal cancels; sky squeezes the rest."""
    cases = [key.removesuffix("_shape") for key in recorded.files if key.endswith("_shape")]
    assert cases
    for case in cases:
        height, width, *map_shape, target = recorded[f"{case}_shape"][:5].tolist()
        depth = _depth_map(golden_weights, map_shape, _seed(recorded), sky=case.endswith("sky"))
        cloud = preprocess.normalised_pointmap(depth, float(recorded[f"{case}_focal"]))
        plan = preprocess.plan_working_size((height, width), target)
        expected = recorded[f"{case}_cropped"]
        cropped = [(preprocess.pointmap_to_working(cloud, plan), "io")]
        if (height, width) == tuple(map_shape):
            prior = mono_depth.estimate_depth(
                Frames(np.zeros((1, *plan.working, 3), np.uint8), np.zeros(1), plan, ("a",)),
                np.zeros((1, height, width, 3), np.uint8),
                "net",
                models={"net": lambda _, depth=depth: (depth[None], None, True, False)},
            )
            assert prior.inverse
            cropped.append((prior_map.prior_maps(prior, NetworkConfig(), plan)[0], "prior"))
        assert np.abs(cloud[::16, ::16] - recorded[f"{case}_cloud"]).max() <= 1e-6, case
        for got, name in cropped:
            assert got.shape[:2] == tuple(recorded[f"{case}_shape"][7:9]), (case, name)
            assert got[::8, ::8].shape == expected.shape, (case, name)
            assert np.abs(got[::8, ::8] - expected).max() <= 5e-6, (case, name)


# ---- the model


def test_maps_are_those_of_the_network_and_batches_compile_once(small_target, loaded, images):
    """Each step by hand: prepared, run, resized; the last of the batches is padded."""
    prepared = np.stack([depth_anything.preprocess(image) for image in images])
    net = network.DepthAnything(CONFIG)
    by_hand = jax.jit(lambda p, x: net.apply({"params": p}, x).depth)(loaded.params, prepared)
    assert by_hand.shape == (5, 42, 56) and np.std(by_hand) > 0.01
    assert not np.allclose(by_hand[0], by_hand[1], atol=1e-3)

    forward = depth_anything._forward(CONFIG, "float32", None, "pillow")
    before = forward._cache_size()
    for _ in range(2):  # the second model shares what the first has compiled
        small = depth_anything.DepthAnythingModel(loaded, output_size="network", batch=2)(images)
        assert small.inverse and not small.metric and small.focal is None
        np.testing.assert_allclose(small.depth, by_hand, atol=1e-5)
    assert forward._cache_size() == before + 1

    maps = depth_anything.DepthAnythingModel(loaded, batch=2)(images).depth
    assert maps.shape == (5, *SHAPE) and maps.dtype == np.float32
    expected = depth_anything.postprocess(by_hand, SHAPE)
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_metric_models_give_metres(small_target, loaded, images):
    metric = dataclasses.replace(loaded, config=dataclasses.replace(CONFIG, max_depth=20.0))
    maps = depth_anything.DepthAnythingModel(metric, route="opencv", batch=5)(images)
    assert maps.metric and not maps.inverse
    assert maps.depth.min() > 0 and maps.depth.max() < 20


def test_checksum_tells_settings_apart(loaded):
    models = [
        depth_anything.DepthAnythingModel(loaded, **options)
        for options in ({}, {"route": "opencv"}, {"output_size": "network"})
    ]
    models.append(depth_anything.DepthAnythingModel(loaded, compute_dtype="bfloat16"))
    assert len({model.checksum for model in models}) == 4
    assert all(model.checksum.startswith("abc") for model in models)


def test_batches_come_from_the_memory_budget(loaded):
    size = (518, 924)
    presets = network.DEPTH_ANYTHING_PRESETS
    large = dataclasses.replace(loaded, config=presets["depth_anything_v2_large"], params={})
    need = depth_anything.frame_bytes(large.config, size)
    assert need > 4 * 2 * 16 * (37 * 66) ** 2  # scores and weights of 16 heads at least
    assert need < 2e9

    def batch(**options):
        return depth_anything.DepthAnythingModel(large, **options).frames_at_once(50, size)

    assert batch(max_memory=3 * need + 1) == 3
    assert batch(max_memory=1) == 1  # a frame cannot be cut
    assert batch(max_memory=1000 * need) == 50
    assert batch(batch=7, max_memory=1) == 7
    assert batch() == depth_anything.MAX_MEMORY // need


SHARDED = """
    import sys, dataclasses, jax, numpy as np
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from align3r_jax.priors import depth_anything
    from align3r_jax.weights.store import LoadedNetwork
    from tests.priors.test_depth_anything import CONFIG

    depth_anything.TARGET = 42
    params = np.load(sys.argv[1], allow_pickle=True).item()
    images = np.load(sys.argv[2])
    mesh = jax.make_mesh((4,), ("frames",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("frames"))
    loaded = LoadedNetwork(CONFIG, params, "tiny", "abc", {}, "depth_anything")
    model = depth_anything.DepthAnythingModel(loaded, output_size="network", sharding=sharding)
    assert model.frames_at_once(5, (42, 56)) == 8  # equal shares of 5 frames
    maps, count = next(model._run(images, (42, 56), None))
    assert count == 5 and {s.data.shape for s in maps.addressable_shards} == {(2, 42, 56)}
    np.save(sys.argv[3], model(images).depth)
"""


def test_frames_are_shared_out_over_the_devices_of_a_mesh(small_target, loaded, images, tmp_path):
    files = [tmp_path / name for name in ("params.npy", "images.npy", "depth.npy")]
    np.save(files[0], loaded.params, allow_pickle=True)
    np.save(files[1], images)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED), *map(str, files)],
        check=True, timeout=300, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    alone = depth_anything.DepthAnythingModel(loaded, output_size="network", batch=2)(images)
    np.testing.assert_allclose(np.load(files[2]), alone.depth, atol=1e-5)
    with pytest.raises(UserError, match="NamedSharding"):
        single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        depth_anything.DepthAnythingModel(loaded, sharding=single)


def test_low_and_wide_images_are_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        for shape in ((320, 1024), (100, 2000)):
            size = depth_anything.network_size(shape)
            depth_anything._warn_if_coarse(shape, size, "pillow")
        assert "12 x 37 patches" in caplog.text and "2 x 37 patches" in caplog.text
        caplog.clear()
        depth_anything._warn_if_coarse((480, 640), (518, 686), "pillow")
        depth_anything._warn_if_coarse((320, 1024), (518, 1652), "opencv")
        assert not caplog.text


@pytest.mark.parametrize(
    "images, match",
    [
        (np.zeros((2, 1, 1, 3), np.uint8), "1 x 1 pixels .* too small"),
        (np.zeros((2, 480, 1, 3), np.uint8), "480 x 1 pixels .* too small"),
        (np.zeros((2, 14, 3000, 3), np.uint8), "too long and thin"),
        (np.full((1, 64, 64, 3), np.nan, np.float32), "NaN"),
        (np.zeros((1, 64, 64, 3), np.float32), "type float32; expected"),
        (np.zeros((64, 64, 3), np.uint8), "shape"),
        (np.zeros((0, 64, 64, 3), np.uint8), "at least one"),
    ],
)
def test_unusable_images(loaded, images, match):
    with pytest.raises(UserError, match=match):
        depth_anything.DepthAnythingModel(loaded)(images)


def test_unusable_settings_and_weights(small_target, loaded, images):
    for options, match in [
        ({"route": "bicubic"}, "route"),
        ({"output_size": "full"}, "output_size"),
        ({"batch": 0}, "batch=0"),
        ({"max_memory": 0}, "max_memory=0"),
    ]:
        with pytest.raises(UserError, match=match):
            depth_anything.DepthAnythingModel(loaded, **options)
    other = LoadedNetwork(NetworkConfig(), {}, "dust3r", "x", {})
    with pytest.raises(UserError, match="dust3r holds the weights of a pairwise network"):
        depth_anything.DepthAnythingModel(other)
    damaged = jax.tree.map(np.array, loaded.params)
    damaged["head"]["output_3"]["bias"][:] = np.nan
    model = depth_anything.DepthAnythingModel(
        dataclasses.replace(loaded, params=damaged), batch=2, output_size="network"
    )
    with pytest.raises(UserError, match="not finite for 5 of 5 frames"):
        model(images)
