"""Writes one small world in the public format of every data set, without the project's writers."""

import dataclasses
import struct
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

ROOT = Path(__file__).parents[3]
STEP = 10  # the sample video is thinned to every tenth pixel


@dataclasses.dataclass(frozen=True)
class World:
    """Frames of the procedural sample: images (T,H,W,3), depth (T,H,W) metres, poses, K, masks."""

    images: np.ndarray
    depth: np.ndarray
    world_from_cam: np.ndarray
    intrinsics: np.ndarray
    dynamic_mask: np.ndarray


def sample_world(count: int) -> World:
    """The first frames of the rendered sample video, at a tenth of its size."""
    with np.load(ROOT / "data" / "samples" / "room_walk.truth.npz") as truth:
        depth = truth["depth"][:count, ::STEP, ::STEP].astype(np.float32)
        poses = truth["world_from_cam"][:count].astype(np.float64)
        intrinsics = truth["intrinsics"][:count].astype(np.float64)
        mask = truth["dynamic_mask"][:count, ::STEP, ::STEP]
    rotation = Rotation.from_matrix(poses[:, :3, :3]).as_matrix()  # exact in float64
    poses[:, :3, :3] = rotation
    intrinsics[:, :2] /= STEP
    grey = (255 * (depth / depth.max())).astype(np.uint8)
    return World(np.stack([grey, 255 - grey, grey // 2], -1), depth, poses, intrinsics, mask)


def picture(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.17g}" for value in np.ravel(values))


def png16(path: Path, depth: np.ndarray, scale: float) -> None:
    picture(path, np.round(depth * scale).astype(np.uint16))


def binary(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def pfm(path: Path, values: np.ndarray) -> None:
    height, width = values.shape
    rows = values[::-1].astype("<f4").tobytes()
    binary(path, b"Pf\n%d %d\n-1\n" % (width, height) + rows)


def sintel(root: Path, name: str, world: World, flow: np.ndarray) -> None:
    """flow: (T-1, H, W, 2). Frames count from 1."""
    training = root / "training"
    count, height, width = world.depth.shape
    for k in range(count):
        frame = f"frame_{k + 1:04d}"
        picture(training / "final" / name / f"{frame}.png", world.images[k])
        picture(training / "clean" / name / f"{frame}.png", 255 - world.images[k])
        head = struct.pack("<f", 202021.25)
        size = struct.pack("<ii", width, height)
        dpt = head + size + world.depth[k].astype("<f4").tobytes()
        binary(training / "depth" / name / f"{frame}.dpt", dpt)
        extrinsics = np.linalg.inv(world.world_from_cam[k])[:3]
        cam = head + world.intrinsics[k].astype("<f8").tobytes() + extrinsics.tobytes()
        binary(training / "camdata_left" / name / f"{frame}.cam", cam)
        if k < count - 1:
            flo = head + size + flow[k].astype("<f4").tobytes()
            binary(training / "flow" / name / f"{frame}.flo", flo)


def tum(folder: Path, world: World, stamps: np.ndarray, *, tables: bool) -> None:
    """Pictures at `stamps`, depth 7 ms later, motion capture at 100 Hz with decoys between.

    Names have their trailing zeros cut, as those of Bonn. tables: rgb.txt and depth.txt.
    """
    lists: dict[str, list[str]] = {"rgb": [], "depth": []}
    for k, stamp in enumerate(stamps):
        for kind, time in (("rgb", stamp), ("depth", stamp + 0.007)):
            name = f"{kind}/{time:.5f}".rstrip("0") + ".png"
            lists[kind].append(f"{time:.6f} {name}")
            if kind == "rgb":
                picture(folder / name, world.images[k])
            else:
                png16(folder / name, world.depth[k], 5000)
    if tables:
        for kind, lines in lists.items():
            text(folder / f"{kind}.txt", "# timestamp filename\n" + "\n".join(lines) + "\n")
    text(folder / "groundtruth.txt", trajectory(stamps, world.world_from_cam))


def trajectory(stamps: np.ndarray, poses: np.ndarray) -> str:
    """Rows every 10 ms, before, between and after; the one nearest to stamp k is pose k."""
    clock = np.arange(np.floor(stamps[0] * 100) - 30, np.ceil(stamps[-1] * 100) + 30) / 100
    nearest = np.abs(clock[:, None] - stamps[None]).argmin(0)
    rows = ["# timestamp tx ty tz qx qy qz qw"]
    decoy = np.array([50.0, 60, 70, 0, 0, 0, 1])
    for row, time in enumerate(clock):
        values = decoy
        if row in nearest:
            pose = poses[int(np.argmax(nearest == row))]
            values = np.concatenate([pose[:3, 3], Rotation.from_matrix(pose[:3, :3]).as_quat()])
        rows.append(f"{time:.4f} {numbers(values)}")
    return "\n".join(rows) + "\n"


def kitti(root: Path, name: str, world: World, first: int) -> None:
    """Annotated frames from `first` on; pictures from 0, one more at the end."""
    date = name[:10]
    raw = root / date / name / "image_02"
    for k in range(first + len(world.depth) + 1):
        picture(raw / "data" / f"{k:010d}.png", world.images[max(k - first, 0) % len(world.depth)])
    depth = root / "val" / name / "proj_depth" / "groundtruth" / "image_02"
    for k, values in enumerate(world.depth):
        png16(depth / f"{first + k:010d}.png", values, 256)
    stamps = [f"2011-09-26 13:02:{k // 10:02d}.{k % 10}00000123\n" for k in range(first + 30)]
    text(raw / "timestamps.txt", "".join(stamps))
    left = np.column_stack([world.intrinsics[0], [44.85728, 0.2, 0.003]])
    text(
        root / date / "calib_cam_to_cam.txt",
        f"calib_time: 09-Jan-2012 13:57:47\nP_rect_00: {numbers(np.eye(3, 4))}\n"
        f"P_rect_02: {numbers(left)}\n",
    )


def nyu(path: Path, image: np.ndarray, depth: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["rgb"] = np.moveaxis(image, -1, 0)
        file["depth"] = depth


def scannet(root: Path, name: str, world: World) -> None:
    """Pictures of twice the size of the depth, as the real ones are larger."""
    for k, depth in enumerate(world.depth):
        large = np.repeat(np.repeat(world.images[k], 2, 0), 2, 1)
        picture(root / name / "color" / f"{k}.jpg", large)
        png16(root / name / "depth" / f"{k}.png", depth, 1000)
        rows = [numbers(row) for row in world.world_from_cam[k]]
        text(root / name / "pose" / f"{k}.txt", "\n".join(rows) + "\n")
    matrix = np.eye(4)
    matrix[:3, :3] = world.intrinsics[0]
    rows = [numbers(row) for row in matrix]
    text(root / name / "intrinsic" / "intrinsic_color.txt", "\n".join(rows) + "\n")


def davis(root: Path, name: str, world: World, *, palette: bool) -> None:
    for k, mask in enumerate(world.dynamic_mask):
        picture(root / "JPEGImages" / "480p" / name / f"{k:05d}.jpg", world.images[k])
        path = root / "Annotations" / "480p" / name / f"{k:05d}.png"
        if palette:  # 2017: indices of objects
            path.parent.mkdir(parents=True, exist_ok=True)
            labels = Image.fromarray(np.where(mask, 2, 0).astype(np.uint8), mode="P")
            labels.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            labels.save(path)
        else:  # 2016: black and white
            picture(path, np.where(mask, 255, 0).astype(np.uint8))


def pointodyssey(root: Path, name: str, world: World) -> None:
    folder = root / "val" / name
    for k, depth in enumerate(world.depth):
        picture(folder / "rgbs" / f"rgb_{k:05d}.jpg", world.images[k])
        png16(folder / "depths" / f"depth_{k:05d}.png", depth, 65.535)
    np.savez(
        folder / "anno.npz",
        intrinsics=world.intrinsics,
        extrinsics=np.linalg.inv(world.world_from_cam),
        trajs_3d=np.zeros((len(world.depth), 17, 3)),
    )


def processed(folder: Path, world: World, poses: np.ndarray) -> None:
    for k, depth in enumerate(world.depth):
        picture(folder / f"{k:05d}_rgb.jpg", world.images[k])
        pfm(folder / f"{k:05d}_depth.pfm", depth)
        picture(folder / f"{k:05d}_mask.png", np.full(depth.shape, 255, np.uint8))
        np.savez(
            folder / f"{k:05d}_metadata.npz",
            camera_intrinsics=world.intrinsics[k],
            camera_pose=poses[k],
        )


def flyingthings(root: Path, letter: str, clip: str, world: World) -> None:
    """Both sides show the left world; the right camera is one unit to its right."""
    within = Path("TEST") / letter / clip
    flip = np.diag([1.0, -1, -1, 1])
    shift = np.eye(4)
    shift[0, 3] = 1
    blocks = []
    for k, depth in enumerate(world.depth):
        for side in ("left", "right"):
            image = root / "frames_finalpass" / within / side / f"{k + 6:04d}.png"
            picture(image, world.images[k])
            pfm(root / "disparity" / within / side / f"{k + 6:04d}.pfm", 1050 / depth)
        left, right = (world.world_from_cam[k] @ move @ flip for move in (np.eye(4), shift))
        blocks.append(f"Frame {k + 6}\nL {numbers(left)}\nR {numbers(right)}\n")
    text(root / "camera_data" / within / "camera_data.txt", "\n".join(blocks))
