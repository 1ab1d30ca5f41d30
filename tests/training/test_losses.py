"""The training loss against recorded reference values and gradients."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.training import losses

DETAILS = {
    "confidence_1": r"conf_loss_1",
    "confidence_2": r"conf_loss2",
    "regression_1": r"Regr3D(_\w+Inv)?_pts3d_1",
    "regression_2": r"Regr3D(_\w+Inv)?_pts3d_2",
}
INVARIANCES = {"ShiftInv": "shift", "ScaleInv": "scale", "ScaleShiftInv": "shift_scale"}


@pytest.fixture(scope="module")
def golden(golden_dir):
    arrays = np.load(golden_dir / "training_losses.npz")
    return dict(arrays), json.loads((golden_dir / "training_losses.json").read_text())


def _inputs(arrays, case):
    """Returns (predictions and confidences, truth in camera 1) of a golden case."""
    pose1 = arrays["in/pose1"]
    pred1, valid1, valid2 = arrays["in/pred1"], arrays["in/valid1"], arrays["in/valid2"]
    if case == "conf_view2_all_invalid":
        valid2 = np.zeros_like(valid2)
    if case == "conf_sample0_view1_invalid":
        valid1 = valid1.copy()
        valid1[0] = False
    if case == "regr_none_half_exact_identity_pose":
        pose1 = np.broadcast_to(np.eye(4, dtype=np.float32), pose1.shape)
        pred1 = arrays["in_exact/pred1"]
    inverse = np.linalg.inv(pose1)

    def to_camera1(points):
        rotated = np.einsum("bij,bhwj->bhwi", inverse[:, :3, :3], points)
        return (rotated + inverse[:, None, None, :3, 3]).astype(np.float32)

    true = losses.PointmapBatch(
        to_camera1(arrays["in/pts3d1"]), to_camera1(arrays["in/pts3d2"]), valid1, valid2
    )
    return (pred1, arrays["in/pred2"], arrays["in/conf1"], arrays["in/conf2"]), true


def _loss(case, inputs, true):
    pred1, pred2, conf1, conf2 = inputs
    predicted = losses.PointmapBatch(pred1, pred2, true.valid1, true.valid2)
    if case.startswith("conf_"):
        alpha = 1.0 if case == "conf_alpha_1" else 0.2
        return losses.confidence_regression(predicted, conf1, conf2, true, alpha)
    if case == "sum_of_losses":
        first, _ = losses.confidence_regression(predicted, conf1, conf2, true)
        second, _ = losses.pointmap_regression(predicted, true, gt_scale=True)
        return first + 0.5 * second, {}
    if case.startswith("regr_none"):
        return losses.pointmap_regression(predicted, true, "none")
    if case.endswith("distclip"):
        return losses.pointmap_regression(predicted, losses.within_distance(true, 8.0))
    if case.startswith("Regr3D_"):
        _, criterion, scale = case.split("_")
        scale = bool(int(scale.removeprefix("gtscale")))
        return losses.pointmap_regression(
            predicted, true, gt_scale=scale, invariance=INVARIANCES[criterion]
        )
    mode, scale = case.removeprefix("regr_").rsplit("_gtscale", 1)
    return losses.pointmap_regression(predicted, true, mode, bool(int(scale)))


def _cases(golden_dir):
    return list(json.loads((golden_dir / "training_losses.json").read_text()))


@pytest.mark.golden
def test_losses_and_details(golden, golden_dir):
    arrays, expected = golden
    given = {case: _inputs(arrays, case) for case in _cases(golden_dir)}
    # One program: what the cases share is compiled once.
    results = jax.jit(lambda given: {c: _loss(c, *parts) for c, parts in given.items()})(given)
    for case, (loss, details) in results.items():
        # The two halves of the confidence loss cancel: float32 rounding of its parts is ~1e-8.
        want = expected[case]["loss"]
        np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-7, err_msg=case)
        for ours, theirs in DETAILS.items():
            recorded = [v for k, v in expected[case]["details"].items() if re.fullmatch(theirs, k)]
            if recorded and recorded[0] is not None and case != "sum_of_losses":
                np.testing.assert_allclose(
                    details[ours], recorded[0], rtol=1e-5, atol=1e-7, err_msg=case
                )


@pytest.mark.golden
def test_gradients(golden, golden_dir):
    arrays, _ = golden
    names = ("pred1", "pred2", "conf1", "conf2")
    cases = {key.split("/")[1] for key in arrays if key.startswith("grad/")}
    assert cases
    for case in sorted(cases & set(_cases(golden_dir))):
        inputs, true = _inputs(arrays, case)
        inputs = tuple(jnp.asarray(x) for x in inputs)
        grads = jax.grad(lambda i, t=true, c=case: _loss(c, i, t)[0])(inputs)
        for name, grad in zip(names, grads):
            want = arrays.get(f"grad/{case}/{name}", np.zeros_like(grad))
            np.testing.assert_allclose(grad, want, atol=1e-7, err_msg=f"{case} {name}")
            scale = np.linalg.norm(want)
            assert np.linalg.norm(grad - want) <= 1e-4 * scale + 1e-12, (case, name)


@pytest.mark.golden
def test_norm_factors(golden):
    arrays, _ = golden
    inputs, true = _inputs(arrays, "conf_avg_dis")
    for mode in ("avg_dis", "avg_log1p", "median_dis", "sqrt_dis"):
        *_, factor = losses.normalisation_factor(
            jnp.asarray(inputs[0]), jnp.asarray(inputs[1]), true.valid1, true.valid2, mode
        )
        np.testing.assert_allclose(factor, arrays[f"norm_factor/{mode}"], rtol=1e-5)


def test_empty_masks_give_zero_loss_and_zero_gradient():
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.normal(size=(2, 4, 5, 3)), jnp.float32)
    mask = jnp.zeros((2, 4, 5), bool)
    true = losses.PointmapBatch(points, points, mask, mask)

    def loss(p):
        predicted = losses.PointmapBatch(p, p, mask, mask)
        return losses.confidence_regression(
            predicted, jnp.ones(mask.shape) * 2, 2.0 * jnp.ones(mask.shape), true
        )[0]

    assert loss(points) == 0
    assert jnp.all(jax.grad(loss)(points) == 0)


def test_an_unknown_invariance_is_refused():
    points, mask = jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 2), bool)
    true = losses.PointmapBatch(points, points, mask, mask)
    with pytest.raises(ValueError, match="shift_scale"):
        losses.pointmap_regression(true, true, invariance="scale_shift")
