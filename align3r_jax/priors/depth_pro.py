"""Depth Pro as a `DepthModel`: frames in, metres of every pixel and the focal out.

    inverse depth = canonical * width / focal,  depth = 1 / clip(resized inverse depth, 1e-4, 1e4)

with the focal given (known camera, EXIF: `io.exif`), or estimated from each frame,
focal = 0.5 width / tan(0.5 field of view).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.networks import depth_pro
from align3r_jax.networks.depth_pro import DepthProConfig
from align3r_jax.networks.depth_pro_windows import NUM_WINDOWS
from align3r_jax.networks.layers import resize
from align3r_jax.priors import frame_batches
from align3r_jax.priors.mono_depth import DepthMaps
from align3r_jax.structs import Array
from align3r_jax.weights import kinds
from align3r_jax.weights.store import LoadedNetwork

MIN_INVERSE, MAX_INVERSE = 1e-4, 1e4
"""Bounds of inverse depth in 1 / metres: skies come out at 10 km."""
MAX_MEMORY = 4 * 2**30
"""Bytes that the activations of one batch may take, unless the caller says otherwise.

One frame of the released model needs 3.5e9, or 2.4e9 with its windows in chunks.
"""
MIN_SIDE = 8  # pixels: smaller images hold nothing to measure


# ---- an image in, metres out


def preprocess(images: jax.Array, side: int) -> jax.Array:
    """Returns (x / 255 - 0.5) / 0.5, stretched to a square: (B, side, side, 3) float32.

    images: (B, H, W, 3) uint8 RGB, upright. Bilinear, not antialiased, after the normalisation.
    """
    scaled = (images.astype(jnp.float32) / 255 - 0.5) / 0.5
    return resize.bilinear(scaled, (side, side), align_corners=False)


def focal_of(fov: jax.Array, width: int) -> jax.Array:
    """focal = 0.5 width / tan(0.5 fov), in pixels; NaN if no camera sees so.

    fov: horizontal, in degrees, should be between 0 and 180.
    """
    focal = 0.5 * width / jnp.tan(0.5 * jnp.deg2rad(fov))
    return jnp.where((fov > 0) & (fov < 180), focal, jnp.nan)


def metric_depth(canonical: jax.Array, focal: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """1 / clip(resized(canonical * width / focal), 1e-4, 1e4): metres at the image's size.

    canonical: (B, S, S) inverse depth as the network gives it; focal: (B,) in pixels of the image;
    shape: (height, width) of the image. Returns (B, height, width).
    """
    inverse = canonical * (shape[1] / focal)[:, None, None]
    inverse = resize.bilinear(inverse[..., None], shape, align_corners=False)[..., 0]
    return 1 / jnp.clip(inverse, min=MIN_INVERSE, max=MAX_INVERSE)


# ---- memory


class MemoryPlan(NamedTuple):
    """frames: how many at once, on each device; window_chunk: see `networks.depth_pro.DepthPro`."""

    frames: int
    window_chunk: int | None


def frame_bytes(config: DepthProConfig, window_chunk: int | None = None) -> int:
    """Returns about how much memory the activations of one image need at their peak, in float32.

    The larger of: a block of the patch encoder over all windows of a chunk (scores and weights
    of every head, the hidden layer), with the tokens kept of the others; two maps of the output's
    size in the head. Within a tenth of what XLA's compiler for CPUs reports for the released model.
    """
    tokens = config.grid**2 + 1
    width = config.embed_dim
    window = tokens * (2 * config.num_heads * tokens + (12 + 3 * config.mlp_ratio) * width)
    kept = 0 if window_chunk is None else 3 * NUM_WINDOWS * tokens * width
    encoder = (window_chunk or NUM_WINDOWS) * window + kept
    head = 2 * config.image_size**2 * (config.decoder_dim // 2)
    return 4 * max(encoder, head)


def plan_memory(config: DepthProConfig, max_memory: int) -> MemoryPlan:
    """Returns how many frames fit into `max_memory` bytes of activations, all windows as one batch.

    If not one does, its windows are taken in the largest chunks that fit. Raises UserError if one
    window at a time is still too much.
    """
    frames = max_memory // frame_bytes(config)
    if frames:
        return MemoryPlan(frames, None)
    for chunk in range(NUM_WINDOWS - 1, 0, -1):
        if frame_bytes(config, chunk) <= max_memory:
            return MemoryPlan(1, chunk)
    raise UserError(
        f"Depth Pro needs about {frame_bytes(config, 1) / 1e9:.1f} GB for the activations of one "
        f"frame; allowed are {max_memory / 1e9:.1f} GB. Allow more (max_memory), or choose a "
        "smaller network."
    )


# ---- the model


class DepthProModel:
    """A loaded Depth Pro as a `DepthModel`.

    focal: in pixels of the images that the model will get, one for all or (T,); None: each frame's
    own is estimated. batch: frames computed together; None: what fits into `max_memory` bytes of
    activations (for each device), see `plan_memory`. The last batch is padded, so that the network
    is compiled once, for all sizes of images. sharding: of a batch (B, ...) over devices, e.g.
    NamedSharding(mesh, PartitionSpec("frames")); the weights go to all of its devices.
    compute_dtype: of encoders and decoder. precision: of float32 products on accelerators
    ("highest" for parity), None = the default in force.

    Raises UserError for weights of another network, a focal that is not positive, or settings
    that cannot be met.
    """

    def __init__(
        self,
        loaded: LoadedNetwork,
        *,
        focal: Array | float | None = None,
        batch: int | None = None,
        max_memory: int = MAX_MEMORY,
        sharding: jax.sharding.Sharding | None = None,
        compute_dtype: str = "float32",
        precision: str | None = None,
    ):
        if not isinstance(loaded.config, DepthProConfig):
            raise UserError(
                f"{loaded.name} holds the weights of {kinds.get(loaded.kind).title}; expected "
                "those of Depth Pro."
            )
        if (batch is not None and batch < 1) or max_memory <= 0:
            raise UserError(f"batch={batch}, max_memory={max_memory}: expected positive numbers.")
        self.name = loaded.name
        self.config = loaded.config
        self._focal = None if focal is None else _checked_focal(focal)
        self._batch = batch
        self._plan = plan_memory(loaded.config, max_memory)
        self._sharding = sharding
        self._params = frame_batches.placed(loaded.params, sharding)
        self._forward = _forward(
            loaded.config, compute_dtype, precision, self._plan.window_chunk, self._focal is None
        )
        # What results depend on: they are cached under it.
        given = (
            "estimated"
            if self._focal is None
            else hashlib.sha256(self._focal.tobytes()).hexdigest()[:16]
        )
        self.checksum = " ".join([loaded.checksum, compute_dtype, f"focal {given}"])

    def __call__(self, images: Array) -> DepthMaps:
        """Returns metres, and the focal in pixels, of images (T, H, W, 3) uint8 RGB.

        depth: (T, H, W) in [1e-4, 1e4], focal: (T,), both float32 on the host. Raises UserError
        if the images are of another form or of hardly any pixels, a focal was given for another
        number of frames, or the network gives numbers that make no sense.
        """
        images = frame_batches.checked(images)
        if min(images.shape[1:3]) < MIN_SIDE:
            raise UserError(
                f"Images of {images.shape[1]} x {images.shape[2]} pixels (height x width) are too "
                f"small for Depth Pro; expected at least {MIN_SIDE} pixels a side."
            )
        focal = None
        if self._focal is not None:
            if self._focal.size not in (1, len(images)):
                raise UserError(
                    f"{self._focal.size} focals were given for {len(images)} frames; give one for "
                    "all, or one for each."
                )
            focal = np.broadcast_to(self._focal, (len(images),))
        depths, focals = [], []
        for result, count in frame_batches.one_ahead(self._run(images, focal)):
            depth, used = jax.device_get(result)
            depths.append(depth[:count])
            focals.append(used[:count])
        used = np.concatenate(focals)
        strange = ~(np.isfinite(used) & (used > 0))
        if strange.any():
            raise UserError(
                f"{self.name} estimated a field of view that no camera has (focal "
                f"{used[strange][0]:g} pixels) for frame number {int(np.argmax(strange))}: the "
                "weights are damaged, or the frame is nothing like a photograph; give the focal."
            )
        depth = np.concatenate(depths)
        frame_batches.refuse_non_finite(depth, self.name)
        return DepthMaps(depth, used, inverse=False, metric=True)

    def frames_at_once(self, num_frames: int) -> int:
        """Returns the batch for so many frames; all devices get equal shares."""
        devices = 1 if self._sharding is None else self._sharding.num_devices
        per_device = self._plan.frames if self._batch is None else -(-self._batch // devices)
        return devices * min(per_device, -(-num_frames // devices))

    def _run(self, images: np.ndarray, focal: np.ndarray | None) -> Iterator[tuple[Any, int]]:
        """Starts batch after batch: (depth, focal), still being computed; how many count."""
        batch = self.frames_at_once(len(images))
        shape = images.shape[1:3]
        for start in range(0, len(images), batch):
            index = np.minimum(np.arange(start, start + batch), len(images) - 1)
            prepared = _prepare(self._place(images[index]), self.config.image_size)
            canonical, fov = self._forward(self._params, prepared)
            given = None if focal is None else self._place(focal[index])
            result = _finish(canonical, fov, given, shape)
            yield result, min(batch, len(images) - start)

    def _place(self, array: np.ndarray) -> Array:
        return array if self._sharding is None else jax.device_put(array, self._sharding)


def _checked_focal(focal: Array | float) -> np.ndarray:
    """The focal as (1,) or (T,) float32."""
    values = np.asarray(focal, np.float32)
    if values.ndim > 1 or not values.size or not (np.isfinite(values) & (values > 0)).all():
        raise UserError(
            f"focal={focal}: expected positive numbers of pixels, one for all frames or (T,)."
        )
    return np.atleast_1d(values)


_prepare = jax.jit(preprocess, static_argnums=1)


@functools.partial(jax.jit, static_argnums=3)
def _finish(
    canonical: jax.Array, fov: Any, focal: jax.Array | None, shape: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    used = focal_of(fov, shape[1]) if focal is None else focal
    return metric_depth(canonical, used, shape), used


@functools.lru_cache(maxsize=16)
def _forward(
    config: DepthProConfig,
    compute_dtype: str,
    precision: str | None,
    window_chunk: int | None,
    estimate_fov: bool,
) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]:
    """The compiled network, shared by all models of the same settings."""
    module = depth_pro.DepthPro(config, jnp.dtype(compute_dtype), precision, window_chunk)

    def forward(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        output: Any = module.apply({"params": params}, images, estimate_fov=estimate_fov)
        return output.inverse_depth, output.fov

    return jax.jit(forward)
