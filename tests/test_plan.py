"""The memory plan: amounts are read, choices shrink with the limit, the least needed is said."""

import dataclasses

import pytest

from align3r_jax import plan
from align3r_jax.config import NETWORK_PRESETS, PairConfig, ReconstructConfig
from align3r_jax.errors import UserError

CONFIG = ReconstructConfig(prior="plane")
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
    tight = _plan(200, 0.33 * large_network.peak, network=NETWORK_PRESETS["align3r_vitl_512_dpt"])
    assert tight.frames_kept < 200, "features are computed again rather than kept"


def test_the_plan_says_what_it_does():
    text = _plan(200, 4e9).describe()
    assert "clips of up to" in text and "allowed 4 GB" in text
