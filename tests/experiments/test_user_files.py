"""Cameras and masks from files to the arguments of `reconstruct`, and once through the command."""

import json

import cv2
import numpy as np
import pytest
from absl.testing import flagsaver

from align3r_jax.errors import UserError
from align3r_jax.io import scene_folder
from align3r_jax.structs import Frames, WorkingSize
from experiments import reconstruct, user_files

SIZE = WorkingSize(original=(64, 96), resized=(64, 96), crop=(0, 0), working=(64, 96))
NAMES = ("000", "001", "002", "003")
FRAMES = Frames(np.zeros((4, 64, 96, 3), np.uint8), np.arange(4) / 30, SIZE, NAMES)
SOFT = user_files.Deviations(rotation=1.0, translation=0.1, relative=True, focal=0.02)


def write_cameras(path, frames=(0, 1, 3)):
    """Poses of some frames, one centimetre apart along x in a world far away; one lens."""
    entries = []
    for k in frames:
        pose = np.eye(4)
        pose[:3, 3] = [20 + 0.01 * k, -3, 1]
        entries.append({"name": f"{k:03d}.png", "world_from_cam": pose.tolist()})
    lens = {"fx": 80, "cx": 47.5, "cy": 31.5}
    path.write_text(json.dumps({"intrinsics": lens, "frames": entries}))
    return str(path)


def write_masks(folder):
    folder.mkdir()
    labels = np.zeros((64, 96), np.uint8)
    labels[:16], labels[40:50, 40:60] = 128, 255
    cv2.imwrite(str(folder / "001.png"), labels)
    return str(folder)


def test_what_is_used_and_how(tmp_path):
    cameras = write_cameras(tmp_path / "cameras.json")
    user = user_files.load(FRAMES, cameras, write_masks(tmp_path / "masks"))
    assert user.facts["cameras"] == {
        "file": cameras, "poses": 3, "intrinsics": 3, "mode": "fixed",
    }  # fmt: skip
    assert user.facts["masks"]["frames"] == 1
    assert (user.masks[1, :16] == 2).all() and (user.masks[1, 40:50, 40:60] == 1).all()
    assert (user.masks[[0, 2, 3]] == 255).all()
    assert len(user.notes) == 2 and user.cameras.rotation_deviation is None
    soft = user_files.load(FRAMES, cameras, None, use="poses", soft=SOFT)
    assert soft.cameras.intrinsics is None and soft.cameras.relative_translation
    assert len({user.checksum, soft.checksum, user_files.load(FRAMES, None, None).checksum}) == 3
    (tmp_path / "K.txt").write_text("80 0 47.5\n0 80 31.5\n0 0 1\n")
    with pytest.raises(UserError, match="holds no poses"):
        user_files.load(FRAMES, str(tmp_path / "K.txt"), None, use="poses")


@pytest.mark.slow
def test_the_command_ends_in_the_world_of_the_cameras(tmp_path):
    rng = np.random.default_rng(3)
    wall = cv2.GaussianBlur(rng.uniform(0, 255, (64, 200, 3)), (0, 0), 2.0)
    wall = (wall - wall.min()) / np.ptp(wall) * 255
    (tmp_path / "frames").mkdir()
    for k in range(4):
        cv2.imwrite(str(tmp_path / "frames" / f"{k:03d}.png"), wall[:, k : k + 96].astype(np.uint8))
    output = tmp_path / "out"
    with flagsaver.flagsaver(
        video=str(tmp_path / "frames"), output=str(output), size=96, iterations=20,
        graph="swin-2-noncyclic", cameras=write_cameras(tmp_path / "cameras.json"),
        masks=write_masks(tmp_path / "masks"),
    ):  # fmt: skip
        reconstruct.main(["reconstruct"])
    scene = scene_folder.load_scene(output)
    np.testing.assert_allclose(scene.world_from_cam[:, :3, 3].mean(0), [20, -3, 1], atol=0.1)
    np.testing.assert_allclose(scene.world_from_cam[3, :3, 3], [20.03, -3, 1], atol=1e-4)
    np.testing.assert_allclose(scene.intrinsics[:, 0, 0], 80, rtol=1e-4)
    assert scene.dynamic_mask[1, 45, 50]
    # 80 px / depth * 1 cm = 1 px a frame.
    assert np.median(scene.depth) == pytest.approx(0.8, rel=0.2)
    summary = scene_folder.load_summary(output)
    assert summary["cameras"]["poses"] == 3
    assert any("3 of 4 frames" in sentence for sentence in summary["limits"])
