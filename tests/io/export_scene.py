"""A small result and the pictures that it was made from, whose truth is known at both sizes."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from align3r_jax.geometry import camera
from align3r_jax.io import joint_upsampling, preprocess, scene_folder
from align3r_jax.structs import Scene, WorkingSize
from tests.viewer import bumpy_scene

FRAMES = 3
# Resized unevenly, then cropped on both axes.
SIZE = WorkingSize(original=(84, 120), resized=(42, 50), crop=(5, 1), working=(32, 48))
NAMES = ("walk 002", "walk 005", "walk 008")


def make() -> tuple[Scene, Scene]:
    """Returns the scene at working size, and what was seen at the original size."""
    original = bumpy_scene.make(FRAMES, *SIZE.original)
    columns, rows = joint_upsampling.working_coordinates(SIZE)
    x = np.interp(np.arange(48), columns, np.arange(120))
    y = np.interp(np.arange(32), rows, np.arange(84))
    nearest = np.rint(y).astype(int)[:, None], np.rint(x).astype(int)[None]
    # The walls' depth between pixels, without a blend of wall and disc.
    moving = np.stack([mask[nearest] for mask in original.dynamic_mask])
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)[:, None]
    fx, fy = x - left, y[:, None] - top
    d = original.depth
    smooth = (1 - fy) * ((1 - fx) * d[:, top, left] + fx * d[:, top, left + 1]) + fy * (
        (1 - fx) * d[:, top + 1, left] + fx * d[:, top + 1, left + 1]
    )
    coarse = np.stack([depth[nearest] for depth in d])
    depth = np.where(np.abs(smooth / coarse - 1) < 0.02, smooth, coarse)
    scene = dataclasses.replace(
        original,
        depth=depth.astype(np.float32),
        intrinsics=np.asarray(camera.to_working(original.intrinsics, SIZE)),
        confidence=original.confidence[:, nearest[0], nearest[1]],
        dynamic_mask=moving,
        colours=np.stack([preprocess.to_working_size(c, SIZE) for c in original.colours]),
        size=SIZE,
        names=NAMES,
    )
    return scene, original


def save(folder: Path) -> tuple[Path, Path, Scene, Scene]:
    """Returns the folders of the result and of the pictures, and both scenes."""
    scene, original = make()
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(10):  # the frames, and others that were not taken
        name = f"walk {k:03d}"
        image = rng.integers(0, 256, (*SIZE.original, 3)).astype(np.uint8)
        if name in NAMES:
            image = original.colours[NAMES.index(name)]
        Image.fromarray(image).save(pictures / f"{name}.png")
    facts = bumpy_scene.summary(scene) | {"input": str(pictures)}
    return scene_folder.save_scene(scene, folder / "result", facts), pictures, scene, original
