"""Consistency against recorded numbers, DIS on a rendered pair with exact flow, composition."""

import dataclasses

import numpy as np
import pytest

from align3r_jax.config import FlowConfig
from align3r_jax.errors import UserError
from align3r_jax.io import flow_files
from align3r_jax.priors import optical_flow
from align3r_jax.structs import Frames, WorkingSize


def make_frames(images: np.ndarray) -> Frames:
    size = images.shape[1:3]
    return Frames(
        images=images,
        times=np.arange(len(images)) / 10,
        size=WorkingSize(original=size, resized=size, crop=(0, 0), working=size),
        names=tuple(f"frame{k}" for k in range(len(images))),
    ).check()


def shifted_frames(shift=(3, 1), count=4) -> Frames:
    """A smooth texture that moves by `shift` pixels (x, y) per frame."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(160.0), np.arange(128.0))
    waves = rng.normal(size=(40, 2)) * 0.25
    phases = rng.uniform(0, 6.28, 40)
    images = []
    for k in range(count):
        waved = [
            np.sin(a * (x - k * shift[0]) + b * (y - k * shift[1]) + c)
            for (a, b), c in zip(waves, phases, strict=True)
        ]
        images.append(np.clip(127 + 12 * np.sum(waved, 0), 0, 255))
    return make_frames(np.repeat(np.stack(images)[..., None], 3, -1).astype(np.uint8))


@pytest.mark.golden
def test_reference_consistency_matches_the_recorded_masks(golden_dir):
    stored = np.load(golden_dir / "flow_masks.npz")
    for k in range(len(stored["flow12"])):
        flow12, flow21 = stored["flow12"][k], stored["flow21"][k]
        np.testing.assert_allclose(
            optical_flow.inconsistency(flow12, flow21, "reference"),
            stored["inconsistency"][k],
            atol=1e-4,
        )
        np.testing.assert_array_equal(optical_flow.in_bounds(flow12), stored["in_bounds"][k] > 0)
        for name, there, back in (("valid12", flow12, flow21), ("valid21", flow21, flow12)):
            found = optical_flow.consistency(there, back, 3.0, "reference")
            np.testing.assert_array_equal(found, stored[name][k] > 0)


def test_the_norm_sees_errors_that_cancel_in_the_sum():
    there = np.zeros((16, 16, 2), np.float32)
    back = there + np.float32([5, -5])
    assert optical_flow.consistency(there, back, 3.0, "reference").all()
    assert not optical_flow.consistency(there, back, 3.0, "norm").any()


@pytest.mark.golden
@pytest.mark.parametrize("quality", ["medium", "high"])
def test_dis_on_a_rendered_pair(golden_dir, quality):
    stored = np.load(golden_dir / "flow_synthetic.npz")
    frames = make_frames(np.stack([stored["image1"], stored["image2"]]))
    source = optical_flow.make_source(FlowConfig(quality=quality), frames)
    found = source.directed(frames, np.array([[0, 1], [1, 0]]))
    errors = [
        np.linalg.norm(found.flow[k][::2, ::2] - stored[name].astype(np.float32), axis=-1)
        for k, name in enumerate(("flow12", "flow21"))
    ]
    assert errors[0].mean() < 0.35
    trusted = found.weight[0][::2, ::2] > 0
    assert errors[0][trusted].mean() < errors[0].mean()
    ego = stored["ego12"].astype(np.float32)
    moved = np.linalg.norm(ego - found.flow[0][::2, ::2], axis=-1)
    mask = (moved - moved.min()) / (moved.max() - moved.min()) > 0.35
    height, width = frames.images.shape[1:3]
    truth = np.unpackbits(stored["dynamic1"])[: height * width].reshape(height, width)
    truth = truth[::2, ::2] > 0
    assert (mask & truth).sum() / (mask | truth).sum() > 0.93


def test_flow_over_several_frames_adds_up():
    frames = shifted_frames()
    source = optical_flow.make_source(FlowConfig(), frames)
    found = source.directed(frames, np.array([[0, 3], [3, 1], [1, 2]]))
    for k, steps in enumerate((3, -2, 1)):
        inner = found.flow[k][24:-24, 24:-24].reshape(-1, 2)
        np.testing.assert_allclose(np.median(inner, 0), [3 * steps, steps], atol=0.1)
        assert found.weight[k][24:-24, 24:-24].mean() > 0.95


def test_composition_follows_the_first_flow():
    first = np.zeros((20, 30, 2), np.float32) + np.float32([2, 1])
    grid = optical_flow.pixel_grid(20, 30)
    second = grid * np.float32([0.1, -0.2])
    found = optical_flow.compose(first, second)[:-1, :-2]
    expected = first + (grid + first) * np.float32([0.1, -0.2])
    np.testing.assert_allclose(found, expected[:-1, :-2], atol=1e-3)


def test_fields_that_disagree_almost_everywhere_weigh_nothing():
    there = np.zeros((10, 10, 2), np.float32)
    back = np.full((10, 10, 2), 5, np.float32)
    back[0] = 0
    flows = {(0, 1): there, (1, 0): back}
    found = optical_flow.weigh(flows, np.array([[0, 1]]), FlowConfig(), "test")
    assert found.weight.sum() == 0
    kept = optical_flow.weigh(flows, np.array([[0, 1]]), FlowConfig(min_consistent=0.05), "test")
    assert kept.weight.sum() == 10


def test_flow_files_are_read_composed_and_checked(tmp_path):
    frames = make_frames(np.zeros((3, 32, 48, 3), np.uint8))
    field = np.zeros((32, 48, 2), np.float32) + np.float32([1.5, 0])
    for i in range(2):
        flow_files.write_flow(tmp_path / f"{i}_{i + 1}.flo", field)
        flow_files.write_flow(tmp_path / f"{i + 1}_{i}.npy", -field)
    source = optical_flow.make_source(FlowConfig(source=f"files:{tmp_path}"), frames)
    found = source.directed(frames, np.array([[0, 1], [2, 0]]))
    np.testing.assert_allclose(found.flow[:, 16, 24], [[1.5, 0], [-3, 0]], atol=1e-5)
    assert found.weight[0, :, :46].all() and not found.weight[0, :, 47].any()
    unknown = field.copy()
    unknown[:8] = np.nan
    flow_files.write_flow(tmp_path / "0_1.flo", unknown)
    found = source.directed(frames, np.array([[0, 1]]))
    assert np.isfinite(found.flow).all() and not found.weight[0, :8].any()
    (tmp_path / "1_2.flo").unlink()
    with pytest.raises(UserError, match="from frame 1 to 2"):
        source.directed(frames, np.array([[0, 2]]))
    flow_files.write_flow(tmp_path / "0_1.flo", np.zeros((5, 5, 2), np.float32))
    with pytest.raises(UserError, match="5x5"):
        source.directed(frames, np.array([[0, 1]]))


def test_flow_files_of_the_original_frames_come_to_working_size(tmp_path):
    size = WorkingSize(original=(64, 96), resized=(32, 48), crop=(0, 0), working=(32, 48))
    frames = make_frames(np.zeros((2, 32, 48, 3), np.uint8))
    frames = dataclasses.replace(frames, size=size)
    field = np.zeros((64, 96, 2), np.float32) + np.float32([3, -1])
    flow_files.write_flow(tmp_path / "000_001.npz", field)
    flow_files.write_flow(tmp_path / "frame1_frame0.png", -field)
    source = optical_flow.make_source(FlowConfig(source=f"files:{tmp_path}"), frames)
    found = source.directed(frames, np.array([[0, 1], [1, 0]]))
    assert found.flow.shape == (2, 32, 48, 2)
    np.testing.assert_allclose(found.flow[:, 16, 24], [[1.5, -0.5], [-1.5, 0.5]], atol=1e-5)


def test_sources_that_cannot_work_are_refused(tmp_path):
    frames = make_frames(np.zeros((2, 8, 8, 3), np.uint8))
    assert optical_flow.make_source(FlowConfig(source="none"), frames) is None
    for source, said in (("dis", "8x8"), ("raft", "unknown"), (f"files:{tmp_path}/no", "exist")):
        with pytest.raises(UserError, match=said):
            optical_flow.make_source(FlowConfig(source=source), frames)
