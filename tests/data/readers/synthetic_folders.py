"""Writes a world in the formats of SceneFlow, Virtual KITTI 2 and TartanAir."""

import dataclasses
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from tests.data.readers import folders


def stretched(world, count, rows, factor, intrinsics):
    """The first frames and rows of a world, every pixel `factor` times as large, another camera."""
    enlarge = np.ones((factor, factor), np.uint8)
    return dataclasses.replace(
        world,
        images=np.stack(
            [np.kron(image[:rows], enlarge[..., None]) for image in world.images[:count]]
        ),
        depth=np.stack([np.kron(depth[:rows], enlarge) for depth in world.depth[:count]]),
        world_from_cam=world.world_from_cam[:count],
        intrinsics=np.repeat(np.asarray(intrinsics, np.float64)[None], count, 0),
        dynamic_mask=world.dynamic_mask[:count],
    )


def beside(world):
    """Another camera of the same rig, a little to the right; shows something else."""
    shift = np.eye(4)
    shift[0, 3] = 0.5
    return dataclasses.replace(
        world,
        images=world.images[:, :, ::-1],
        depth=1.5 * world.depth[:, :, ::-1],
        world_from_cam=world.world_from_cam @ shift,
    )


def sceneflow(root, clip, sides, first, *, cameras=None):
    """sides: {"left": world, "right": world}; frames count from `first`.

    cameras: numbers of the frames in camera_data.txt, by default all.
    """
    clip, flip = Path(clip), np.diag([1.0, -1, -1, 1])
    for side, world in sides.items():
        for k, depth in enumerate(world.depth):
            name = f"{first + k:04d}"
            folders.picture(
                root / "frames_finalpass" / clip / side / f"{name}.png", world.images[k]
            )
            values = world.intrinsics[k, 0, 0] / depth
            folders.pfm(root / "disparity" / clip / side / f"{name}.pfm", values)
    blocks = []
    for number in cameras or range(first, first + len(sides["left"].depth)):
        left, right = (
            sides[side].world_from_cam[number - first] @ flip for side in ("left", "right")
        )
        blocks.append(f"Frame {number}\nL {folders.numbers(left)}\nR {folders.numbers(right)}\n\n")
    folders.text(root / "camera_data" / clip / "camera_data.txt", "".join(blocks))


def vkitti2(folders_of, scene, variation, cameras):
    """folders_of: kind of archive -> root. cameras: the worlds of Camera_0 and Camera_1."""
    text = folders_of["textgt"] / scene / variation
    inner, outer = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"], ["frame cameraID r1,1 ... 1"]
    for k in range(len(cameras[0].depth)):
        for number, world in enumerate(cameras):
            matrix, pose = world.intrinsics[k], np.linalg.inv(world.world_from_cam[k])
            four = matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
            inner.append(f"{k} {number} {folders.numbers(four)}")
            outer.append(f"{k} {number} {folders.numbers(pose)} ")
            place = Path(scene, variation, "frames")
            picture = place / "rgb" / f"Camera_{number}" / f"rgb_{k:05d}.jpg"
            folders.picture(folders_of["rgb"] / picture, world.images[k])
            depth = place / "depth" / f"Camera_{number}" / f"depth_{k:05d}.png"
            folders.png16(folders_of["depth"] / depth, world.depth[k], 100)
    folders.text(text / "intrinsic.txt", "\n".join(inner) + "\n")
    folders.text(text / "extrinsic.txt", "\n".join(outer) + "\n")


def tartanair(folder, sides):
    """One flight. A camera that looks north, right is east, down is down: the NED identity."""
    ned_from_opencv = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    for side, world in sides.items():
        rows = []
        for k, depth in enumerate(world.depth):
            name = f"{k:06d}_{side}"
            folders.picture(folder / f"image_{side}" / f"{name}.png", world.images[k])
            path = folder / f"depth_{side}" / f"{name}_depth.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, depth)
            pose = world.world_from_cam[k]
            turned = ned_from_opencv @ pose[:3, :3] @ ned_from_opencv.T
            quaternion = Rotation.from_matrix(turned).as_quat()
            rows.append(
                folders.numbers(np.concatenate([ned_from_opencv @ pose[:3, 3], quaternion]))
            )
        folders.text(folder / f"pose_{side}.txt", "\n".join(rows) + "\n")
