"""Depth metrics and protocols against the recorded numbers."""

import json

import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.evaluation import depth

pytestmark = pytest.mark.golden
_NAMES = ("Abs Rel", "Sq Rel", "RMSE", "Log RMSE")
_FIT_OF = {"align_with_lad2": "lad2", "align_with_lad": "lad", "align_with_lstsq": "lstsq",
           "align_with_scale": "scale"}  # fmt: skip


@pytest.fixture(scope="module")
def golden(golden_dir):
    arrays = np.load(golden_dir / "depth_metrics.npz")
    numbers = json.loads((golden_dir / "depth_metrics.json").read_text())
    count = len({name.split("/")[0] for name in arrays.files if name.startswith("seq")})
    sequences = [(arrays[f"seq{k}/pred"], arrays[f"seq{k}/gt"]) for k in range(count)]
    return arrays, numbers, sequences


def _compare(ours, recorded, fit):
    tolerance = 2e-3 if fit == "lad" else 2e-4 if fit == "lad2" else 1e-4
    assert ours["valid_pixels"] == recorded.get("valid_pixels", ours["valid_pixels"])
    for name in _NAMES:
        assert ours[name] == pytest.approx(recorded[name], rel=tolerance), name
    for name in ours:
        if name.startswith("delta"):
            slack = 2 / ours["valid_pixels"] + (2e-3 if fit == "lad" else 0)
            assert ours[name] == pytest.approx(recorded[name], abs=slack + 1e-6), name


@pytest.mark.parametrize("fit", ["lstsq", "lad", "lad2", "scale"])
def test_align3r_protocol(golden, fit):
    _, numbers, sequences = golden
    recorded = numbers["align3r"][fit]
    limit = recorded["depth_max"]
    protocol = depth.DepthProtocol(fit=fit, max_depth=limit, clip=(1e-5, limit))
    collected = []
    for (prediction, truth), entry, best in zip(
        sequences, recorded["sequences"], numbers["exact_lad"]
    ):
        result = depth.evaluate(prediction, truth, protocol)
        if fit == "lad":
            mask = depth.valid_pixels(truth, protocol)
            assert _objective(prediction, truth, result, mask) <= best["l1_objective"] * 1.0001
        elif fit == "lad2":
            assert result.scale == pytest.approx(entry["scale"], abs=1e-4)
            assert result.shift == pytest.approx(entry["shift"], abs=1e-4)
        else:
            assert result.scale == pytest.approx(entry["scale"], rel=1e-4)
            assert result.shift == pytest.approx(entry["shift"], rel=1e-4, abs=1e-6)
            mask = depth.valid_pixels(truth, protocol)
            ours = _objective(prediction, truth, result, mask)
            assert ours == pytest.approx(entry["l1_objective"], rel=1e-3)
        _compare(result.metrics, entry["metrics"], fit)
        collected.append(result.metrics)
    averaged = depth.average(collected)
    for name in _NAMES:
        assert averaged[name] == pytest.approx(
            recorded["average"][name], rel=2e-3 if fit == "lad" else 2e-4
        )
    for name in (name for name in averaged if name.startswith("delta")):
        assert averaged[name] == pytest.approx(recorded["average"][name], abs=3e-3), name


def _objective(prediction, truth, result, mask):
    fitted = result.scale * prediction.astype(np.float64) + result.shift
    return np.abs(fitted - truth)[mask].sum()


def test_exact_optimum_and_median_ratio(golden):
    _, numbers, sequences = golden
    for (prediction, truth), best in zip(sequences, numbers["exact_lad"], strict=True):
        exact = depth.evaluate(prediction, truth, depth.DepthProtocol(fit="lad"))
        # The objective is flat at its minimum: the optimum is met, the parameters nearly so.
        assert exact.scale == pytest.approx(best["scale"], rel=1e-2)
        assert exact.shift == pytest.approx(best["shift"], rel=2e-2)
        median = depth.evaluate(prediction, truth, depth.DepthProtocol(fit="median"))
        assert median.scale == pytest.approx(best["median_scale"], rel=1e-4)


def test_nothing_recorded_is_left_out(golden):
    _, numbers, _ = golden
    assert set(numbers) <= {"scipy", "align3r", "monst3r", "exact_lad", "mask_case"}
    assert set(numbers["align3r"]) <= {"lstsq", "lad", "lad2", "scale"}
    for name, recorded in numbers["monst3r"].items():
        assert "arguments" in recorded or name == "single_frame_median", name
        flags = set(recorded.get("arguments", {}))
        known = {"max_depth", "pre_clip_min", "post_clip_max", "disp_input", *_FIT_OF}
        assert flags <= known, (name, flags - known)


def test_monst3r_protocols(golden):
    _, numbers, sequences = golden
    for name, recorded in numbers["monst3r"].items():
        if "arguments" not in recorded:
            continue
        arguments = recorded["arguments"]
        fit = next((value for key, value in _FIT_OF.items() if arguments.get(key)), "median")
        protocol = depth.DepthProtocol(
            fit=fit,
            min_depth=0.0,
            max_depth=arguments.get("max_depth", 80),
            clip=(arguments.get("pre_clip_min"), arguments.get("post_clip_max")),
            disparity=arguments.get("disp_input", False),
        )
        collected = []
        for (prediction, truth), entry in zip(sequences, recorded["sequences"]):
            source = 1 / np.maximum(prediction, 0.05) if protocol.disparity else prediction
            result = depth.evaluate(source, truth, protocol)
            _compare(result.metrics, entry.get("metrics", entry), fit)
            collected.append(result.metrics)
        averaged = depth.average(collected)
        for metric in _NAMES:
            assert averaged[metric] == pytest.approx(
                recorded["average"][metric], rel=2e-3 if fit == "lad" else 2e-4
            ), (name, metric)


def test_reweighted_scale_tends_to_the_exact_one():
    """Ten steps from the ratio of means; the exact fit has the lower objective."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 4, (3, 20, 30)).astype(np.float32)
    y = (2.5 * x + 0.3 * rng.standard_t(1.5, x.shape)).clip(0.1).astype(np.float32)
    mask = y > 0.1

    def cost(fit):
        scale, _ = depth.FITS[fit](x, y, mask)
        return float(np.abs(float(scale) * x - y)[mask].sum())

    assert cost("lad_scale") <= cost("scale") * 1.00001
    assert cost("scale") <= cost("median") * 1.05


def test_single_frames(golden):
    _, numbers, sequences = golden
    recorded = numbers["monst3r"]["single_frame_median"]
    protocol = depth.DepthProtocol(fit="median", min_depth=0.0, max_depth=None, clip=(None, None))
    frames = [(p, g) for prediction, truth in sequences for p, g in zip(prediction, truth)]
    results = [depth.evaluate(p, g, protocol).metrics for p, g in frames]
    assert len(results) == len(recorded["per_image"])
    for ours, entry in zip(results, recorded["per_image"]):
        _compare(ours, entry, "median")
    assert depth.average(results)["Abs Rel"] == pytest.approx(
        recorded["average"]["Abs Rel"], rel=1e-4
    )


def test_valid_pixels(golden):
    cases = golden[1]["mask_case"]
    truth = np.array(cases["gt"], np.float32)
    for name, limits in {
        "align3r_depth_max_70": (1e-3, 70.0),
        "monst3r_max_70": (0.0, 70.0),
        "monst3r_no_max": (0.0, None),
    }.items():
        protocol = depth.DepthProtocol(min_depth=limits[0], max_depth=limits[1])
        np.testing.assert_array_equal(
            depth.valid_pixels(truth, protocol), np.array(cases[name], bool)
        )


def test_resize(golden):
    arrays = golden[0]
    for name in ("cubic", "linear"):
        expected = arrays[f"resize/{name}"]
        ours = depth.resize_to(arrays["resize/in"], expected.shape, name)
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_bad_input_is_named():
    truth = np.ones((2, 3, 4), np.float32)
    with pytest.raises(UserError, match="resize_to"):
        depth.evaluate(np.ones((2, 3, 5), np.float32), truth)
    with pytest.raises(UserError, match="no valid pixel"):
        depth.evaluate(truth, truth * 0)
    with pytest.raises(UserError, match="lad3"):
        depth.evaluate(truth, truth, depth.DepthProtocol(fit="lad3"))
