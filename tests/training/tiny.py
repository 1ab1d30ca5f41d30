"""A network that compiles in a second, and batches of both forms for it."""

import dataclasses

import jax
import numpy as np

from align3r_jax.config import NetworkConfig
from tests.networks import micro

HEIGHT, WIDTH, ROWS = 16, 32, 2
FOCAL = 28.0
NETWORK: NetworkConfig = dataclasses.replace(micro.ALIGN3R, dec_depth=4)
PLAIN = dataclasses.replace(NETWORK, prior_branch=False, dec_depth=1)
RAY = dataclasses.replace(NETWORK, prior_encoding="ray", output="anchored", head="dpt")


def parameters(abstract, seed=0):
    """Noise in the shapes of a network, norms around 1. Nothing has to be compiled for it."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        value = 0.15 * rng.standard_normal(leaf.shape).astype(np.float32)
        return value + 1 if path[-1].key == "scale" else value

    return jax.tree_util.tree_map_with_path(fill, abstract)


def pose(rows=ROWS):
    """cam1_from_cam2 (rows, 4, 4): a turn about y and a shift."""
    angle = np.linspace(0.05, 0.1, rows)
    matrix = np.tile(np.eye(4, dtype=np.float32), (rows, 1, 1))
    matrix[:, 0, 0] = matrix[:, 2, 2] = np.cos(angle)
    matrix[:, 0, 2], matrix[:, 2, 0] = np.sin(angle), -np.sin(angle)
    matrix[:, :3, 3] = [0.1, 0.02, 0.05]
    return matrix


def rendered(rows=ROWS, height=HEIGHT, width=WIDTH, seed=0):
    """A batch as the renderer gives it."""
    rng = np.random.default_rng(seed)
    depth = np.exp(0.3 * rng.normal(size=(rows, 2, height, width))).astype(np.float32)
    return {
        "images": rng.integers(0, 256, (rows, 2, height, width, 3)).astype(np.float32) / 127.5 - 1,
        "depth": depth,
        "focal": np.full(rows, FOCAL, np.float32),
        "cam1_from_cam2": pose(rows),
        "prior_depth": 1.2 * depth,
        "prior_focal": np.full(rows, 1.1 * FOCAL, np.float32),
        "has_prior": np.arange(rows) % 2 == 0,
    }


def from_files(batch):
    """The same batch as the pipeline of files gives it, with min-max prior point maps."""
    rows, _, height, width, _ = batch["images"].shape
    intrinsics = np.zeros((rows, 2, 3, 3), np.float32)
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = batch["focal"][:, None]
    intrinsics[..., :2, 2], intrinsics[..., 2, 2] = (width / 2, height / 2), 1
    rng = np.random.default_rng(1)
    return {
        "images": np.round((batch["images"] + 1) * 127.5).astype(np.uint8),
        "depth": batch["depth"],
        "intrinsics": intrinsics,
        "cam1_from_cam2": batch["cam1_from_cam2"],
        "has_prior": np.repeat(batch["has_prior"][:, None], 2, 1),
        "prior_points": rng.uniform(size=batch["images"].shape).astype(np.float32),
        "portrait": np.zeros((rows, 2), bool),
    }


def stored_transposed(batch, views):
    """The batch of files with the chosen views (B, 2) turned: rows and columns exchanged.

    The sides of an upright batch of portrait views exchange, so all its views must be chosen.
    """
    assert views.all()
    turned = dict(batch, portrait=views, intrinsics=batch["intrinsics"][:, :, [1, 0, 2]])
    for name in ("images", "depth", "prior_points"):
        turned[name] = np.swapaxes(batch[name], 2, 3)
    return turned


def other_order(batch):
    """The batch with view 2 first."""
    swapped = {
        name: value[:, ::-1] if value.ndim > 1 and name != "cam1_from_cam2" else value
        for name, value in batch.items()
    }
    return dict(swapped, cam1_from_cam2=np.linalg.inv(batch["cam1_from_cam2"]).astype(np.float32))
