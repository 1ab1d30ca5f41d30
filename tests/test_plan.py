"""The memory plan: amounts are read, choices shrink with the limit, the least needed is said."""

import dataclasses

import jax
import numpy as np
import pytest

from align3r_jax import pairing, plan
from align3r_jax.alignment import joint
from align3r_jax.config import NETWORK_PRESETS, AlignmentConfig, PairConfig, ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import cost
from align3r_jax.structs import OpticalFlow, PairPredictions

CONFIG = ReconstructConfig(prior="plane", pair_batch=4)
RESIDENT = 500 << 20


def _plan(frames, limit, config=CONFIG, **settings):
    return plan.make_plan(
        frames, 240, 320, config, max_memory=int(limit), resident=RESIDENT, **settings
    )


def test_amounts_of_memory_are_read():
    assert plan.parse_memory("8GB") == 8 * 10**9
    assert plan.parse_memory("500 MiB") == 500 * 2**20
    assert plan.parse_memory("1.5g") == 1_500_000_000
    assert plan.parse_memory("2e9") == 2_000_000_000
    for wrong in ("", "much", "-3GB", "3XB", "GB", "1.2.3GB"):
        with pytest.raises(UserError, match="like 8GB"):
            plan.parse_memory(wrong)


def test_a_smaller_limit_gives_a_smaller_plan_that_fits():
    generous = _plan(200, 64e9)
    needed = generous.peak
    previous = generous
    for share in (0.9, 0.8, 0.7):
        limit = int(share * needed)
        chosen = _plan(200, limit)
        assert chosen.peak <= limit == chosen.limit
        assert chosen.clips_per_call <= previous.clips_per_call
        previous = chosen
    assert previous.clips_per_call < generous.clips_per_call
    assert all(size > RESIDENT for size in previous.stages.values())


def test_too_little_is_an_error_that_names_what_would_do():
    with pytest.raises(UserError, match=r"at least ([\d.]+)GB") as error:
        _plan(200, 6e8)
    needed = float(str(error.value).split("at least ")[1].split("GB")[0]) * 1e9
    assert _plan(200, needed).peak <= needed


def test_prediction_grows_linearly():
    """Twice as many frames never need more than twice the growth, key frames included."""
    peaks = [_plan(frames, 1e12).stages for frames in (600, 1200, 2400)]
    for name in peaks[0]:
        first, second = (peaks[k + 1][name] - peaks[k][name] for k in (0, 1))
        assert second < 2.3 * max(first, 1 << 20), name


def _nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _arrays(pairs, height, width):
    maps = [np.zeros((pairs, height, width, 3), np.float32) for _ in range(2)]
    confidences = [np.zeros((pairs, height, width), np.float32) for _ in range(2)]
    ends = np.stack([np.arange(pairs), np.arange(pairs) + 1], -1).astype(np.int32)
    vectors = np.zeros((pairs, height, width, 2), np.float32)
    flow = OpticalFlow(ends, vectors, np.zeros((pairs, height, width), np.float32))
    return ends, PairPredictions(*maps, *confidences), flow


def test_terms_are_the_bytes_of_the_arrays_they_name():
    ends, predictions, flow = _arrays(5, 30, 50)
    assert _nbytes(predictions) == 5 * 30 * 50 * plan._POINT
    assert _nbytes(flow) - ends.nbytes == 5 * 30 * 50 * plan._FIELD
    config = dataclasses.replace(CONFIG, alignment=AlignmentConfig(joint_pixels=70))
    chosen = dataclasses.replace(_plan(40, 64e9, config), joint_pixels=70)
    cells = plan.lattice_pixels(30, 50, chosen, config)
    kept = joint.observe(ends, predictions, flow, joint.stride_of(30, 50, config.alignment))
    assert kept.predictions.confidence1[0].size == cells == 84
    assert _nbytes((kept.predictions, kept.flow)) - ends.nbytes == 5 * cells * (
        plan._POINT + plan._FIELD
    )
    # What a clip leaves, and what the flow predictor keeps: depth, confidence, mask.
    frame = (
        np.zeros((30, 50), np.float32),
        np.zeros((30, 50), np.float32),
        np.zeros((30, 50), bool),
    )
    assert _nbytes(frame) == 30 * 50 * plan._RESULT


@pytest.mark.parametrize("symmetric", (True, False))
def test_pairs_of_the_joint_refinement_are_counted(symmetric):
    """Frames 0-8, 9-17, 18-21: inside, across the borders both ways, and the three key frames."""
    config = ReconstructConfig(pairs=PairConfig(clip_symmetric=symmetric))
    lengths, step = (9, 9, 4), 2 if symmetric else 1
    inside = [len(range(i + 1, n, step)) for n in lengths for i in range(n)]
    both = 2 if symmetric else 1
    expected = both * sum(inside) + 2 * (2 * 2) * 2 + both * 3
    assert plan.joint_pairs(22, 9, config) == expected


def test_stages_are_sums_of_these_terms():
    """Exactly: what a stage adds to the one before is what its arrays take."""
    frames, height, width = 100, 96, 128
    chosen = _plan(frames, 64e9)
    halved = dataclasses.replace(chosen, joint_pixels=chosen.joint_pixels // 4)
    large, small = (
        plan.predict(p, frames, height, width, CONFIG, None, RESIDENT) for p in (chosen, halved)
    )
    pairs = plan.joint_pairs(frames, chosen.clip_size, CONFIG)
    cells = [plan.lattice_pixels(height, width, p, CONFIG) for p in (chosen, halved)]
    per_pair = plan._POINT + (1 if CONFIG.pairs.clip_symmetric else 2) * plan._FIELD
    kept = pairs * (cells[0] - cells[1]) * per_pair
    assert large["clips"] - small["clips"] == kept
    assert large["joint refinement"] - small["joint refinement"] == (
        3 * kept + frames * (cells[0] - cells[1]) * plan._FRAME
    )
    count = len(pairing.clips(frames, chosen.clip_size))
    whole, alone = (
        plan.predict(
            dataclasses.replace(chosen, clips_per_call=calls), frames, height, width, CONFIG,
            None, RESIDENT,
        )
        for calls in (count, 1)
    )  # fmt: skip
    inside = pairing.clip_graph(chosen.clip_size, CONFIG.pairs.clip_symmetric).num_pairs
    clip = (inside * plan._STACKED + chosen.clip_size * plan._FRAME) * height * width
    assert whole["clips"] - alone["clips"] == (count - 1) * clip
    assert count % chosen.clips_per_call, "the last call has fewer clips: one more program"
    assert large["outputs"] - whole["outputs"] == plan._LAST_CALL
    other = plan.predict(chosen, frames, height, width, CONFIG, None, RESIDENT + 12345)
    assert all(other[name] - large[name] == 12345 for name in large)


def test_mode_and_networks():
    assert _plan(20, 64e9).mode == "flat"
    assert _plan(200, 64e9).mode == "hierarchical"
    flat = dataclasses.replace(CONFIG, pairs=PairConfig(mode="flat"))
    whole = _plan(200, 64e9, flat)
    assert whole.mode == "flat"
    with pytest.raises(UserError, match="hierarchical"):
        _plan(200, whole.peak / 2, flat)
    small_network = _plan(200, 64e9, network=NETWORK_PRESETS["align3r_small"])
    large_network = _plan(200, 64e9, network=NETWORK_PRESETS["align3r_vitl_512_dpt"])
    assert large_network.frames_kept == 200
    assert large_network.stages["clips"] > small_network.stages["clips"]
    tight = _plan(200, 0.4 * large_network.peak, network=NETWORK_PRESETS["align3r_vitl_512_dpt"])
    assert tight.frames_kept < 200, "features are computed again rather than kept"


def test_features_hold_what_there_is_room_for():
    network = NETWORK_PRESETS["align3r_vitl_512_dpt"]
    per_frame = {
        reuse: cost.feature_bytes(network, 240, 320, reuse) for reuse in ("tokens", "block", "head")
    }
    chosen = _plan(20, 64e9, network=network)
    assert chosen.reuse == chosen.applied(CONFIG).feature_reuse == "head"
    fewer = _plan(20, chosen.peak - 1, network=network)
    assert (fewer.mode, fewer.reuse, fewer.pair_batch) == ("flat", "block", CONFIG.pair_batch)
    assert chosen.peak - fewer.peak == 20 * (per_frame["head"] - per_frame["block"])
    for reuse in ("head", "block", "tokens"):
        config = dataclasses.replace(CONFIG, feature_memory=20 * per_frame[reuse])
        assert _plan(20, 64e9, config, network=network).reuse == reuse
    tiny = dataclasses.replace(CONFIG, feature_memory=1000)
    assert _plan(20, 64e9, tiny, network=network).reuse == "tokens"
    fixed = dataclasses.replace(CONFIG, feature_reuse="block")
    assert _plan(200, 64e9, fixed, network=network).reuse == "block"
    assert _plan(20, 64e9).reuse == "tokens", "the flow predictor has no such features"


def test_the_plan_says_what_it_does():
    text = _plan(200, 4e9).describe()
    assert "clips of up to" in text and "allowed 4 GB" in text
