"""RAFT and SEA-RAFT against recorded runs: every stage, every look-up, the flow at full size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.networks.raft import build, correlation, sea_raft
from align3r_jax.weights.tables import raft as raft_table
from align3r_jax.weights.tables import sea_raft as sea_raft_table
from tests.networks import flow_recorded

pytestmark = pytest.mark.golden

TABLES = {"raft": raft_table, "searaft": sea_raft_table}
MODELS = list(TABLES)
LOW, FULL = 1e-4, 3e-4  # pixels of the grid, pixels of the image


@pytest.fixture(scope="module")
def networks(golden_dir, golden_weights):
    """model, seed -> (configuration, parameters)"""

    @functools.cache
    def load(model, seed):
        state = flow_recorded.weights(golden_dir, golden_weights, model, seed)
        config = TABLES[model].infer_config(state)
        return config, TABLES[model].import_state(state, config)

    return load


def run(config, params, images, iterations, positions=None, **settings):
    """Everything that the files record, from one compilation."""
    network = build.make(config, precision="highest", **settings)

    @jax.jit
    def compute(params, first, second, positions):
        net = network.bind({"params": params})
        both = net.encode_frames(jnp.concatenate([first, second]), return_intermediates=True)
        source, target = both.take(slice(0, 1)), both.take(slice(1, 2))
        begun = net.begin(source, target)
        found = {"source": source, "target": target, "begun": begun}
        if positions is not None:
            stepped, found["step"] = net.step(begun.state, begun)
            found["net_out"] = stepped.net
            masks = [net.mask(state) for state in (begun.state, stepped)]
            found["mask_begun"], found["mask_step"] = masks
            # All three ways to look up, at the recorded positions.
            for method in ("gather", "hat", "on_the_fly"):
                height, width = source.matching.shape[1:3]
                plan = correlation.LookupPlan(method, max(height // 3, 1))
                levels, radius = config.corr_levels, config.corr_radius
                pair = correlation.correlate(source.matching, target.matching, levels, radius, plan)
                found[method] = pair.lookup(positions)
                if method == "gather":
                    found["levels"] = pair.levels
        found["output"] = net.flow_pairs(source, target, iterations, positions is not None)
        return found

    return jax.device_get(compute(params, *map(jnp.asarray, images), positions))


def expect(got, file, name, slices, tolerance):
    """`got` (..., H, W, C), cut like the recorded array of that name, is close to it."""
    got = flow_recorded.channels_first(got)[slices]
    assert got.shape == file[name].shape, f"{name}: {got.shape}, recorded {file[name].shape}"
    error = np.abs(got - file[name]).max()
    assert error <= tolerance, f"{name}: off by {error:.1e}, allowed {tolerance:.0e}"


def test_every_stage_of_raft(networks, golden_dir, golden_weights):
    for path in flow_recorded.files(golden_dir, "raft", "fnet_conv1"):
        file, found = stages(networks, golden_weights, "raft", path)
        named = found["source"].intermediates
        expect(named["context_layer3"], file, "cnet_layer3", np.s_[:, ::8], LOW)
        expect(named["context_raw"], file, "cnet_raw", np.s_[:, ::2], LOW)
        begun = found["begun"]
        expect(begun.intermediates["inputs"], file, "step0_inp", np.s_[:, ::4], LOW)
        assert not file["step0_flow_in"].any() and not begun.state.flow.any()
        expect(found["mask_step"], file, "step0_mask", np.s_[:, ::4], LOW)
        expect(found["step"]["delta"], file, "step0_delta", np.s_[:], LOW)
        expect(found["output"].iterates[0], file, "flow_up_first", np.s_[:], FULL)
        assert found["output"].info is None


def test_every_stage_of_sea_raft(networks, golden_dir, golden_weights):
    for path in flow_recorded.files(golden_dir, "searaft", "fnet_conv1"):
        file, found = stages(networks, golden_weights, "searaft", path)
        begun, output = found["begun"], found["output"]
        expect(begun.intermediates["context_raw"], file, "cnet_raw", np.s_[:, ::2], LOW)
        expect(begun.intermediates["start"], file, "init_conv", np.s_[:, ::2], LOW)
        expect(begun.context, file, "step0_inp", np.s_[:, ::4], LOW)
        expect(begun.state.flow, file, "step0_flow_in", np.s_[:], LOW)
        expect(found["step"]["refine_0"], file, "step0_refine0", np.s_[:, ::2], LOW)
        expect(found["mask_begun"], file, "upw_init", np.s_[:, ::8], LOW)
        expect(found["mask_step"], file, "upw_step0", np.s_[:, ::8], LOW)
        heads = np.stack([begun.intermediates["head"], found["step"]["head"]])
        expect(heads, {"head": file["head"][:2]}, "head", np.s_[:], LOW)
        expect(output.iterates[0], file, "flow_up_init", np.s_[:, :, 1::2, ::2], FULL)
        expect(output.info, file, "info", np.s_[:, :, 1::2, ::2], FULL)
        zero = np.zeros_like(output.flow)
        likelihood = sea_raft.negative_log_likelihood(output.flow, output.info, zero)
        expect(likelihood, file, "nf", np.s_[:, :, 1::4, ::4], 1e-3)


def stages(networks, golden_weights, model, path):
    """Checks what both networks have in common; returns the file and what was computed."""
    file = dict(np.load(path))
    config, params = networks(model, flow_recorded.seed_of(file))
    images = flow_recorded.inputs(golden_weights, file)
    positions = jnp.asarray(file["lookup_coords"].transpose(0, 2, 3, 1))
    found = run(config, params, images, int(file["iters"]), positions)
    source, target = found["source"], found["target"]
    norm = "norm1" if model == "raft" else "bn1"
    fine, coarse = np.s_[:, ::8, ::4, ::4], np.s_[:, ::8, ::2, ::2]
    for ours, name, slices in (
        ("stem", "conv1", fine),
        ("stem_norm", norm, fine),
        ("layer1", "layer1", fine),
        ("layer2", "layer2", coarse),
        ("layer3", "layer3", np.s_[:, ::8]),
    ):
        expect(source.intermediates[f"frame_{ours}"], file, f"fnet_{name}", slices, LOW)
    expect(source.matching, file, "fmap1", np.s_[:, ::2], LOW)
    expect(target.matching, file, "fmap2", np.s_[:, ::4], LOW)
    for level, every in enumerate((13, 7, 3, 3)):
        recorded = file[f"corr_l{level}"]
        np.testing.assert_allclose(found["levels"][level][0, ::every], recorded, atol=LOW)
    for method in ("gather", "hat", "on_the_fly"):
        expect(found[method], file, "lookup", np.s_[:], 1.5e-4)  # values to 48
    begun, step, output = found["begun"], found["step"], found["output"]
    expect(begun.state.net, file, "step0_net_in", np.s_[:], LOW)
    expect(step["correlation"], file, "step0_corr", np.s_[:, ::3], 1.5e-4)
    expect(step["motion"], file, "step0_motion", np.s_[:, ::2], LOW)
    expect(found["net_out"], file, "step0_net_out", np.s_[:], LOW)
    expect(output.iterates_low, file, "flow_low", np.s_[:], LOW)
    expect(output.flow, file, "flow_up", np.s_[:], FULL)
    np.testing.assert_array_equal(output.iterates[-1], output.flow)
    return file, found


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_large_frames(networks, golden_dir, golden_weights, model):
    for path in flow_recorded.files(golden_dir, model, "flow_up_patch"):
        file = dict(np.load(path))
        config, params = networks(model, flow_recorded.seed_of(file))
        images = flow_recorded.inputs(golden_weights, file)
        positions = jnp.zeros((1, *file["flow_low"].shape[-2:], 2))
        found = run(config, params, images, int(file["iters"]), positions)
        cut, output = np.s_[:, ::16, ::3, ::4], found["output"]
        expect(found["source"].matching, file, "fmap1", cut, LOW)
        raw = found["source" if model == "raft" else "begun"].intermediates["context_raw"]
        expect(raw, file, "cnet_raw", cut, LOW)
        expect(found["step"]["correlation"], file, "step0_corr", np.s_[:, ::9, ::3, ::4], 1.5e-4)
        expect(output.iterates_low, file, "flow_low", np.s_[:], LOW)
        expect(output.flow, file, "flow_up", np.s_[:, :, 1::4, 2::4], FULL)
        expect(output.flow, file, "flow_up_patch", np.s_[:, :, :32, :32], FULL)
        if model == "searaft":
            expect(output.info, file, "info", np.s_[:, :, 1::8, 2::8], FULL)
            expect(found["begun"].intermediates["head"], file, "head_init", np.s_[:], LOW)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_frames_that_need_padding(networks, golden_dir, golden_weights, model):
    for path in flow_recorded.files(golden_dir, model, "pad_lrtb"):
        file = dict(np.load(path))
        config, params = networks(model, flow_recorded.seed_of(file))
        images = flow_recorded.inputs(golden_weights, file)
        iterations = int(file["iters"])
        output = run(config, params, images, iterations, lookup="on_the_fly")["output"]
        expect(output.flow_low, file, "flow_low", np.s_[:], LOW)
        expect(output.flow, file, "flow_up", np.s_[:], FULL)
        # Measured with bfloat16 convolutions: 0.06 to 0.11 px in the mean of flows of 15 px.
        short = run(config, params, images, iterations, dtype=jnp.bfloat16)["output"]
        error = np.linalg.norm(short.flow - output.flow, axis=-1)
        length = np.linalg.norm(output.flow, axis=-1).mean()
        assert error.mean() < 0.02 * length and error.max() < 0.1 * length
