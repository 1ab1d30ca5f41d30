"""A small Scene in closed form: a bumpy wall, an orbiting camera, a disc that moves."""

import numpy as np

from align3r_jax.structs import Scene, WorkingSize


def _look_at(centre: np.ndarray, target: np.ndarray) -> np.ndarray:
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross([0.0, 1.0, 0.0], forward)  # y down
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = centre
    return pose


def _wall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """World z of the wall above (x, y)."""
    return 4.0 + 0.35 * np.sin(2.1 * x) * np.cos(1.7 * y) - 0.8 * np.exp(-(x**2 + y**2) * 2)


def make(num_frames: int = 6, height: int = 48, width: int = 64, seed: int = 0) -> Scene:
    """Returns the scene; its depth is exact: unprojected static pixels lie on `z = _wall(x, y)`."""
    rng = np.random.default_rng(seed)
    focal = 0.9 * width
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    grid_x, grid_y = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([grid_x, grid_y, np.ones_like(grid_x)], -1) @ np.linalg.inv(intrinsics).T
    depths, poses, masks, colours = [], [], [], []
    for t in range(num_frames):
        phase = 2 * np.pi * t / max(num_frames, 8)
        centre = np.array([0.9 * np.sin(phase), 0.25 * np.cos(phase), 0.1 * np.sin(2 * phase)])
        pose = _look_at(centre, np.array([0.0, 0.0, 4.0]))
        direction = rays @ pose[:3, :3].T
        depth = np.full((height, width), 4.0)
        for _ in range(60):  # fixed point of z(depth) = wall(x(depth), y(depth))
            point = centre + depth[..., None] * direction
            depth = depth - 0.5 * (point[..., 2] - _wall(point[..., 0], point[..., 1]))
        point = centre + depth[..., None] * direction
        disc_x = (0.25 + 0.5 * t / max(num_frames - 1, 1)) * width
        mask = (grid_x - disc_x) ** 2 + (grid_y - 0.6 * height) ** 2 < (0.12 * width) ** 2
        checks = np.floor(point[..., 0] * 3) + np.floor(point[..., 1] * 3)
        shade = 0.75 + 0.25 * (checks % 2)
        colour = np.stack([120 + 90 * np.sin(point[..., 0]), 130 + 80 * np.cos(point[..., 1]),
                           200 - 60 * (point[..., 2] - 3.5)], -1) * shade[..., None]  # fmt: skip
        colour[mask] = (235, 200, 60)
        depth[mask] = 2.5
        depths.append(depth)
        poses.append(pose)
        masks.append(mask)
        colours.append(np.clip(colour + rng.normal(0, 3, colour.shape), 0, 255).astype(np.uint8))
    steps = np.arange(120)
    falling = np.exp(-steps / 30)
    pairs = num_frames * (num_frames - 1)
    return Scene(
        depth=np.array(depths, np.float32),
        world_from_cam=np.array(poses, np.float32),
        intrinsics=np.tile(intrinsics.astype(np.float32), (num_frames, 1, 1)),
        confidence=(1.5 + 4 * rng.random((num_frames, height, width))).astype(np.float32),
        dynamic_mask=np.array(masks),
        colours=np.array(colours),
        times=np.arange(num_frames) / 12.5,
        pair_losses=(0.01 + 0.02 * rng.random(pairs)).astype(np.float32),
        trace={
            "total": (0.02 + 0.5 * falling).astype(np.float32),
            "pointmap": (0.015 + 0.4 * falling).astype(np.float32),
            "smoothness": (0.003 + 0.08 * falling).astype(np.float32),
            "flow": np.where(steps < 12, 0, 0.002 + 0.02 * falling).astype(np.float32),
        },
        size=WorkingSize(
            original=(height * 5 // 2, width * 5 // 2), resized=(height, width), crop=(0, 0),
            working=(height, width),
        ),
        names=tuple(f"frame {t}" for t in range(num_frames)),
        metric=True,
    )  # fmt: skip


def pairs(num_frames: int) -> list[list[int]]:
    """All ordered pairs, in the order of `pair_losses`."""
    return [[i, j] for i in range(num_frames) for j in range(num_frames) if i != j]


def summary(scene: Scene) -> dict:
    """A summary as `experiments.reconstruct` writes it, with errors against a truth."""
    return {
        "predictor": "flow",
        "prior": "plane",
        "limits": ["Without learnt weights, depth far from any parallax follows a plane."],
        "input": "clips/bumpy_wall.mp4",
        "flow": "dis",
        "settings": {"seed": 0, "alignment": {"iterations": 120, "lr": 0.01}},
        "weights": None,
        "stages": [
            {"stage": "depth prior", "seconds": 0.21, "peak_memory_mb": 310},
            {"stage": "optical flow", "seconds": 3.4, "resumed": True},
            {"stage": "alignment", "seconds": 12.9, "peak_memory_mb": 902},
        ],
        "pairs": pairs(len(scene.names)),
        "errors": {
            "ATE": {"value": 0.013, "unit": "m", "baseline": 0.21,
                    "baseline_name": "standing camera"},
            "Abs Rel": {"value": 0.062, "baseline": 0.18, "baseline_name": "constant plane"},
            "motion-mask IoU": {"value": 0.71, "better": "higher"},
            "delta < 1.25": 0.97,
        },
    }  # fmt: skip
