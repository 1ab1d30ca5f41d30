"""Depth Anything V2 as a `DepthModel`: frames in, inverse depth (or metres) of every pixel out.

Two routes prepare an image, and give slightly different depth:

| | "pillow" (transformers; what Align3R's priors were made with) | "opencv" (the authors' script) |
|---|---|---|
| scale | 518 / height or 518 / width, whichever is nearer to 1 | the larger of the two |
| sides | nearest multiple of 14 | the same, but at least 518 |
| resize | bicubic a = -0.5, antialiased, on uint8 | bicubic a = -0.75, not antialiased, on float |
| back to the image | bicubic a = -0.75 | bilinear, corners on corners |
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.networks import depth_anything
from align3r_jax.networks.depth_anything import DepthAnythingConfig
from align3r_jax.networks.layers import resize
from align3r_jax.priors import frame_batches
from align3r_jax.priors.mono_depth import DepthMaps
from align3r_jax.structs import Array
from align3r_jax.weights import kinds
from align3r_jax.weights.store import LoadedNetwork

Route = Literal["pillow", "opencv"]

TARGET = 518  # side that the network was trained at: 37 patches of 14 pixels
MAX_MEMORY = 2 * 2**30
"""Bytes that the activations of one batch may take, unless the caller says otherwise.

About 6 frames of 518 x 924 with Small, 2 with Large. A frame that needs more runs alone.
"""
MAX_TOKENS = 8 * 37**2
"""Of one image, eight times the square one. Attention needs memory in the square of it."""
MIN_SIDE = 14  # pixels: one patch
_MULTIPLE = 14
_MEAN = np.array([0.485, 0.456, 0.406])
_STD = np.array([0.229, 0.224, 0.225])

_log = logging.getLogger(__name__)


# ---- images in


def network_size(shape: tuple[int, int], route: Route = "pillow") -> tuple[int, int]:
    """Returns the (height, width) at which the network sees an image of `shape`.

    Raises UserError if the image is too small, or too long and thin.
    """
    height, width = shape
    if min(shape) < MIN_SIDE:
        raise UserError(
            f"Images of {height} x {width} pixels (height x width) are too small for Depth "
            f"Anything; expected at least {MIN_SIDE} pixels a side."
        )
    by_height, by_width = TARGET / height, TARGET / width
    if route == "pillow":
        scale = by_width if abs(1 - by_width) < abs(1 - by_height) else by_height
        rows, columns = (round(scale * side / _MULTIPLE) for side in shape)
    elif route == "opencv":
        scale = max(by_height, by_width)
        rows, columns = (_at_least_target(scale * side / _MULTIPLE) for side in shape)
    else:
        raise UserError(f'route={route!r}; expected "pillow" or "opencv".')
    if not 0 < rows * columns <= MAX_TOKENS:
        raise UserError(
            f"Images of {height} x {width} pixels (height x width) are too long and thin for Depth "
            f"Anything: it would see them as {rows} x {columns} patches. Crop them."
        )
    return rows * _MULTIPLE, columns * _MULTIPLE


def _at_least_target(patches: float) -> int:
    """Rounded, but up where the side would fall short of TARGET."""
    rounded = round(patches)
    return rounded if rounded * _MULTIPLE >= TARGET else int(np.ceil(patches))


def preprocess(image: np.ndarray, route: Route = "pillow") -> np.ndarray:
    """Returns (x - mean) / std of the image at `network_size`, (h, w, 3) float32.

    image: (H, W, 3) uint8 RGB, upright.
    """
    height, width = network_size(image.shape[:2], route)
    if route == "pillow":
        picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        scaled = np.asarray(picture).astype(np.float32) * np.float32(1 / 255)
        return (scaled - _MEAN.astype(np.float32)) / _STD.astype(np.float32)
    enlarged = cv2.resize(image / 255.0, (width, height), interpolation=cv2.INTER_CUBIC)
    return ((enlarged - _MEAN) / _STD).astype(np.float32)


def postprocess(maps: jax.Array, shape: tuple[int, int], route: Route = "pillow") -> jax.Array:
    """Returns maps (B, h, w) resized to `shape` as the route does; bicubic overshoots slightly."""
    if route == "pillow":
        return resize.bicubic(maps[..., None], shape)[..., 0]
    return resize.bilinear(maps[..., None], shape, align_corners=True)[..., 0]


# ---- the model


def frame_bytes(config: DepthAnythingConfig, size: tuple[int, int]) -> int:
    """Returns about how much memory the activations of one (h, w) image need at their peak.

    The largest of: attention (scores and weights of every head) with the hidden layer; the finest
    fusion (three maps of 8/14 of the size); the last layers (three maps of the full size).
    """
    rows, columns = size[0] // config.patch_size, size[1] // config.patch_size
    tokens = rows * columns + 1
    attention = 2 * config.num_heads * tokens**2
    hidden = (12 + config.mlp_ratio) * tokens * config.embed_dim
    fusion = 3 * 64 * rows * columns * config.feature_dim
    last = 3 * size[0] * size[1] * max(config.feature_dim // 2, config.last_dim)
    return 4 * max(attention + hidden, fusion, last)


class DepthAnythingModel:
    """A loaded Depth Anything V2 as a `DepthModel`.

    route: see above. output_size: "image" gives maps of the size of the images, "network" as the
    network made them. batch: frames computed together; None: what fits into `max_memory` bytes of
    activations. The last batch is padded, so that every size of image is compiled once. sharding:
    of a batch (B, ...) over devices, e.g. NamedSharding(mesh, PartitionSpec("frames")); the
    weights go to all of its devices. compute_dtype: of the network's matrix products. precision: of
    float32 products on accelerators ("highest" for parity), None = the default in force.

    Relative models return inverse depth >= 0, larger is nearer; metric models metres.
    Raises UserError for weights of another network.
    """

    def __init__(
        self,
        loaded: LoadedNetwork,
        *,
        route: Route = "pillow",
        output_size: Literal["image", "network"] = "image",
        batch: int | None = None,
        max_memory: int = MAX_MEMORY,
        sharding: jax.sharding.Sharding | None = None,
        compute_dtype: str = "float32",
        precision: str | None = None,
    ):
        if not isinstance(loaded.config, DepthAnythingConfig):
            raise UserError(
                f"{loaded.name} holds the weights of {kinds.get(loaded.kind).title}; expected "
                "those of Depth Anything V2."
            )
        if route not in ("pillow", "opencv") or output_size not in ("image", "network"):
            raise UserError(
                f'route={route!r}, output_size={output_size!r}; expected "pillow" or "opencv", '
                '"image" or "network".'
            )
        if (batch is not None and batch < 1) or max_memory <= 0:
            raise UserError(f"batch={batch}, max_memory={max_memory}: expected positive numbers.")
        self.name = loaded.name
        self.config = loaded.config
        self._route: Route = route
        self._at_image_size = output_size == "image"
        self._batch, self._max_memory = batch, max_memory
        self._sharding = sharding
        self._params = frame_batches.placed(loaded.params, sharding)
        self._forward = _forward(loaded.config, compute_dtype, precision, route)
        # What results depend on: they are cached under it.
        self.checksum = " ".join([loaded.checksum, route, output_size, compute_dtype])

    def __call__(self, images: Array) -> DepthMaps:
        """Returns the depth of images (T, H0, W0, 3) uint8 RGB as host arrays.

        Raises UserError if they are of another form, too small or too thin, or if the network
        gives numbers that are not finite.
        """
        images = frame_batches.checked(images)
        shape = images.shape[1:3]
        size = network_size(shape, self._route)
        _warn_if_coarse(shape, size, self._route)
        target = shape if self._at_image_size and size != shape else None
        depth = [
            jax.device_get(maps)[:count]
            for maps, count in frame_batches.one_ahead(self._run(images, size, target))
        ]
        maps = np.concatenate(depth)
        frame_batches.refuse_non_finite(maps, self.name)
        metric = self.config.max_depth is not None
        return DepthMaps(maps, None, inverse=not metric, metric=metric)

    def frames_at_once(self, num_frames: int, size: tuple[int, int]) -> int:
        """Returns the batch for so many frames at network size; all devices get equal shares."""
        budget = max(1, self._max_memory // frame_bytes(self.config, size))
        devices = 1 if self._sharding is None else self._sharding.num_devices
        per_device = budget if self._batch is None else -(-self._batch // devices)
        return devices * min(per_device, -(-num_frames // devices))

    def _run(
        self, images: np.ndarray, size: tuple[int, int], target: tuple[int, int] | None
    ) -> Iterator[tuple[jax.Array, int]]:
        """Starts batch after batch: maps, still being computed, and how many of them count."""
        batch = self.frames_at_once(len(images), size)
        for start in range(0, len(images), batch):
            prepared = [preprocess(image, self._route) for image in images[start : start + batch]]
            count = len(prepared)
            inputs = np.stack(prepared + prepared[-1:] * (batch - count))
            placed = inputs if self._sharding is None else jax.device_put(inputs, self._sharding)
            yield self._forward(self._params, placed, target), count


@functools.lru_cache(maxsize=16)
def _forward(
    config: DepthAnythingConfig, compute_dtype: str, precision: str | None, route: Route
) -> Callable[..., jax.Array]:
    """The compiled network and post-processing, shared by all models of the same settings."""
    dtype = jnp.dtype(compute_dtype)
    module = depth_anything.DepthAnything(config, dtype, precision=precision)

    def forward(params: Any, images: jax.Array, target: tuple[int, int] | None) -> jax.Array:
        output: Any = module.apply({"params": params}, images)
        return output.depth if target is None else postprocess(output.depth, target, route)

    return jax.jit(forward, static_argnums=2)


def _warn_if_coarse(shape: tuple[int, int], size: tuple[int, int], route: Route) -> None:
    if route == "opencv" or min(size) >= TARGET:
        return
    _log.warning(
        "Depth Anything sees these %d x %d images (height x width) as %d x %d patches: fine "
        "structure is lost. Larger images, or route='opencv', give more.",
        *shape,
        *(side // _MULTIPLE for side in size),
    )
