"""Flow networks as a source: one computation per directed pair, batches, cache, memory, devices."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from align3r_jax.config import FlowConfig, NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.networks.raft import build, correlation
from align3r_jax.networks.raft.config import FLOW_PRESETS
from align3r_jax.priors import flow_batches, optical_flow
from align3r_jax.priors.flow_network import NetworkFlow
from align3r_jax.weights.store import LoadedNetwork
from tests.networks import tiny_flow
from tests.priors.test_optical_flow import make_frames

ROOT = Path(__file__).parents[2]
CONFIG = FlowConfig(iterations=2, consistency_px=3.0, min_consistent=0.0)
PAIRS = np.array([[0, 1], [1, 0], [0, 2], [2, 1]])  # and the ways back of the last two
FRAMES = make_frames(tiny_flow.images(3, 24, 40))


def loaded(kind="sea_raft", **changes):
    values = {"name": "test", "checksum": "abc", "meta": {}, "kind": kind, **changes}
    return LoadedNetwork(tiny_flow.CONFIGS[kind], tiny_flow.params(kind), **values)


def counting(source, monkeypatch):
    """Counts the batches that a source encodes and matches."""
    counts = {"frames": 0, "pairs": 0}
    compiled = source._compiled

    def watched(plan, backend):
        encode, match = compiled(plan, backend)

        def count(name, function):
            def call(*arguments):
                counts[name] += 1
                return function(*arguments)

            return call

        return count("frames", encode), count("pairs", match)

    monkeypatch.setattr(source, "_compiled", watched)
    return counts


@pytest.fixture(scope="module")
def expected():
    """The fields of all ordered pairs, each computed by itself from its images."""
    network = build.make(tiny_flow.CONFIGS["sea_raft"])
    run = jax.jit(lambda v, a, b: network.apply(v, a, b, CONFIG.iterations).flow[0])
    variables = {"params": tiny_flow.params("sea_raft")}
    return {
        (i, j): np.asarray(run(variables, FRAMES.images[[i]], FRAMES.images[[j]]))
        for i in range(3)
        for j in range(3)
        if i != j
    }


@pytest.fixture(scope="module")
def source():
    """Batches of 4: six fields in two batches, the second padded; three frames in one."""
    return NetworkFlow(CONFIG, loaded(), batch=4)


def test_fields_equal_those_of_single_pairs(source, expected, monkeypatch):
    counts = counting(source, monkeypatch)
    found = source.directed(FRAMES, PAIRS)
    assert found.name == "sea_raft" and source.sharpest() is source
    assert isinstance(found.flow, np.ndarray) and found.flow.dtype == np.float32
    assert counts == {"frames": 1, "pairs": 2}
    for k, (i, j) in enumerate(PAIRS.tolist()):
        assert np.abs(expected[i, j]).max() > 1
        np.testing.assert_allclose(found.flow[k], expected[i, j], atol=2e-3)  # to 250
        trusted = optical_flow.consistency(found.flow[k], source_field(found, j, i, expected), 3.0)
        assert (trusted == found.weight[k]).mean() > 0.99
    # All is known now, also for other frame numbers of the same images.
    some = make_frames(FRAMES.images[1:])
    again = source.directed(some, np.array([[0, 1]]))
    np.testing.assert_array_equal(
        again.flow[0], source.directed(FRAMES, np.array([[1, 2]])).flow[0]
    )
    assert counts == {"frames": 1, "pairs": 2}


def source_field(found, i, j, expected):
    position = {tuple(pair): k for k, pair in enumerate(found.pairs.tolist())}
    return found.flow[position[i, j]] if (i, j) in position else expected[i, j]


def test_fields_are_read_from_disk(source, tmp_path, monkeypatch):
    first = source.directed(FRAMES, PAIRS)
    cached = NetworkFlow(CONFIG, loaded(), batch=4, cache_dir=tmp_path)
    size = flow_batches.compiled.cache_info().misses
    cached.directed(FRAMES, PAIRS)
    assert flow_batches.compiled.cache_info().misses == size  # a new source compiles nothing
    assert len(list(tmp_path.iterdir())) == 6  # one per ordered pair
    later = NetworkFlow(CONFIG, loaded(), batch=2, cache_dir=tmp_path)
    counts = counting(later, monkeypatch)
    np.testing.assert_array_equal(later.directed(FRAMES, PAIRS).flow, first.flow)
    assert counts == {"frames": 0, "pairs": 0}
    # Other weights, other settings, other images: other entries.
    for changed in (
        NetworkFlow(CONFIG, loaded(checksum="abd"), cache_dir=tmp_path),
        NetworkFlow(FlowConfig(iterations=3), loaded(), cache_dir=tmp_path),
        NetworkFlow(CONFIG, loaded(), cache_dir=tmp_path, compute_dtype="bfloat16"),
    ):
        monkeypatch.setattr(changed, "_compute", stop)
        with pytest.raises(RuntimeError, match="computed"):
            changed.directed(FRAMES, PAIRS)


def stop(*arguments):
    raise RuntimeError("computed")


def test_little_memory_costs_time_only(source, monkeypatch):
    """No room for features, fields or volumes, on a mesh of one device: the same flow."""
    size = flow_batches.feature_bytes(tiny_flow.CONFIGS["sea_raft"], *FRAMES.images.shape[1:3])
    assert size == 4 * (3 * 5 * 16 + 24 * 40 * 3)
    mesh = jax.make_mesh((1,), ("pairs",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("pairs"))
    tight = NetworkFlow(CONFIG, loaded(), batch=4, max_memory=1000, sharding=sharding)
    counts = counting(tight, monkeypatch)
    ample = source.directed(FRAMES, PAIRS)
    np.testing.assert_allclose(tight.directed(FRAMES, PAIRS).flow, ample.flow, atol=2e-3)
    assert counts["frames"] > 1 and counts["pairs"] == 2
    assert not tight._features._values and not tight._fields._values  # 250 bytes hold neither
    tight.directed(FRAMES, PAIRS)
    assert counts["pairs"] == 4


def test_batches_follow_device_and_memory():
    config = FLOW_PRESETS["raft"]
    volume = correlation.volume_bytes(1, 36, 64, 4)
    pair = volume + 800 * 288 * 512

    def plan(backend, budget, **settings):
        return flow_batches.plan_batch(config, backend, 288, 512, budget, **settings)

    assert plan("cpu", 1 << 32).batch == 1
    assert plan("gpu", 1 << 32).batch == plan("tpu", 1 << 32).batch == 12
    assert plan("gpu", 5 * pair).batch == 5
    assert plan("gpu", 5 * pair).correlation_budget == 5 * volume
    assert plan("gpu", pair - 1).batch == 1
    assert plan("gpu", pair - 1).correlation_budget < volume  # then on the fly
    assert plan("gpu", 1 << 32, batch=3, devices=4).batch == 12
    assert plan("cpu", 1 << 32, devices=8).batch == 8


SHARDED = """
    import jax, numpy as np
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from align3r_jax.priors.flow_network import NetworkFlow
    from tests.priors import test_flow_network as t

    mesh = jax.make_mesh((2,), ("pairs",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("pairs"))
    for kind in ("raft", "sea_raft"):
        one = NetworkFlow(t.CONFIG, t.loaded(kind)).directed(t.FRAMES, t.PAIRS)
        two = NetworkFlow(t.CONFIG, t.loaded(kind), sharding=split).directed(t.FRAMES, t.PAIRS)
        np.testing.assert_allclose(two.flow, one.flow, atol=2e-3)
"""


@pytest.mark.slow
def test_two_devices_give_the_same_fields():
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)],
        check=True, timeout=300, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_what_cannot_work_is_said(source):
    other = LoadedNetwork(NetworkConfig(), {}, "align3r.pth", "x", {})
    with pytest.raises(UserError, match="align3r.pth holds the weights of a pairwise network"):
        NetworkFlow(CONFIG, other)
    with pytest.raises(UserError, match="iterations=0"):
        NetworkFlow(FlowConfig(iterations=0), loaded())
    with pytest.raises(UserError, match="batch=0"):
        NetworkFlow(CONFIG, loaded(), batch=0)
    with pytest.raises(UserError, match="at least 8 pixels a side, got 40x7"):
        source.directed(make_frames(tiny_flow.images(2, 7, 40)), PAIRS[:2])
    params = dict(tiny_flow.params("sea_raft"))
    params["start"] = {**params["start"], "bias": params["start"]["bias"] * np.nan}
    broken = NetworkFlow(CONFIG, LoadedNetwork(tiny_flow.CONFIGS["sea_raft"], params, "n", "x", {}))
    broken._compiled = lambda plan, backend: source._compiled(plan._replace(batch=4), backend)
    broken._batch = 4
    with pytest.raises(UserError, match="not finite from frame 0 to 1"):
        broken.directed(FRAMES, PAIRS[:1])
