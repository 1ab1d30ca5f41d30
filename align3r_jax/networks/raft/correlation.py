"""All-pairs correlation and its look-up, in three ways that give the same numbers.

C_l[p, q] = <f1[p], pool^l(f2)[q]> / sqrt(C) for pixels p of the source and q of the target grid,
pooled l times 2 x 2 (RAFT, section 3.2). A look-up at positions x reads, on every level, the
(2r + 1)^2 samples of C_l[p] around x / 2^l, bilinear, 0 outside.

"gather": the volume of all levels is kept, samples are read by index (CPU, GPU). "hat": the same
volume, samples by two small matrix products with hat functions, no index anywhere (TPU).
"on_the_fly": no volume; rows of it are computed again at every look-up (large images or batches).

Everything is float32 with exact products: positions and correlations do not stand less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array
Lookup = Literal["auto", "gather", "hat", "on_the_fly"]

Reader = Callable[[Array, Array, int], Array]

LOOKUPS = ("auto", "gather", "hat", "on_the_fly")
_HIGHEST = jax.lax.Precision.HIGHEST


class LookupPlan(NamedTuple):
    """How to look up: `method`, and for "on_the_fly" the rows of the source grid at a time."""

    method: str
    rows: int


def level_sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Grid size of every level: halved and rounded down each time, 0 at the end."""
    return [(height >> level, width >> level) for level in range(levels)]


def volume_bytes(batch: int, height: int, width: int, levels: int) -> int:
    """Memory of the volume of `batch` pairs of grids (height, width), all levels, float32."""
    cells = sum(h * w for h, w in level_sizes(height, width, levels))
    return 4 * batch * height * width * cells


def plan_lookup(
    lookup: Lookup, backend: str, batch: int, height: int, width: int, levels: int, budget: int
) -> LookupPlan:
    """Returns how to look up on a device, given the bytes that correlations may take.

    lookup: "auto" keeps the volume if it fits into `budget`, read by matrix products on TPUs and
    by index elsewhere; any other name is taken as it is. backend: "cpu", "gpu", "tpu".
    """
    if lookup not in LOOKUPS:
        raise ValueError(f"lookup={lookup!r}; expected one of {', '.join(LOOKUPS)}.")
    total = volume_bytes(batch, height, width, levels)
    if lookup == "auto" and total > budget:
        lookup = "on_the_fly"
    elif lookup == "auto":
        lookup = "hat" if backend == "tpu" else "gather"
    # A row of the volume and what its look-up makes of it, about as much again.
    rows = budget * height // max(2 * total, 1)
    return LookupPlan(lookup, min(max(rows, 1), height))


def pool(features: Array) -> Array:
    """Mean over 2 x 2 cells, (..., h, w, C) -> (..., h // 2, w // 2, C); odd ends are dropped."""
    *lead, height, width, channels = features.shape
    half_height, half_width = height // 2, width // 2
    even = features[..., : 2 * half_height, : 2 * half_width, :]
    return even.reshape(*lead, half_height, 2, half_width, 2, channels).mean((-4, -2))


@struct.dataclass
class Correlation:
    """Correlation of B pairs, ready to be looked up.

    levels: with a volume (B, h w, h_l, w_l) per level, else target features (B, h_l, w_l, C).
    source: (B, h, w, C) without a volume, else None.
    """

    levels: tuple[Array, ...]
    source: Array | None
    grid: tuple[int, int] = struct.field(pytree_node=False)
    radius: int = struct.field(pytree_node=False)
    plan: LookupPlan = struct.field(pytree_node=False)

    def lookup(self, positions: Array) -> Array:
        """Returns (B, h, w, L (2r + 1)^2) samples around positions (B, h, w, 2), (x, y) in cells.

        Channel = level, then the window's x offset, then its y offset (the last runs fastest).
        """
        batch = positions.shape[0]
        channels = len(self.levels) * (2 * self.radius + 1) ** 2
        if self.source is None:
            read = _gathered if self.plan.method == "gather" else _hat
            flat = positions.reshape(batch, -1, 2)
            found = _all_levels(self.levels, flat, self.radius, read)
        else:
            found = self._by_rows(self.source, positions)
        return found.reshape(batch, *self.grid, channels)

    def _by_rows(self, source: Array, positions: Array) -> Array:
        batch, height, width, _ = positions.shape
        rows = self.plan.rows
        steps = math.ceil(height / rows)

        def chunks(x: Array) -> Array:
            x = jnp.pad(x, ((0, 0), (0, steps * rows - height), (0, 0), (0, 0)))
            return x.reshape(batch, steps, rows * width, x.shape[-1]).swapaxes(0, 1)

        def look(chunk: tuple[Array, Array]) -> Array:
            queries, flat = chunk
            levels = tuple(_correlate(queries, level) for level in self.levels)
            return _all_levels(levels, flat, self.radius, _hat)

        found = jax.lax.map(look, (chunks(source), chunks(positions)))
        return found.swapaxes(0, 1).reshape(batch, steps * rows, width, -1)[:, :height]


def correlate(
    source: Array, target: Array, levels: int, radius: int, plan: LookupPlan
) -> Correlation:
    """Returns the correlation of feature maps (B, h, w, C), prepared as `plan` says."""
    source, target = source.astype(jnp.float32), target.astype(jnp.float32)
    pooled = [target]
    for _ in range(levels - 1):
        pooled.append(pool(pooled[-1]))
    batch, height, width, channels = source.shape
    grid = (height, width)
    if plan.method == "on_the_fly":
        return Correlation(tuple(pooled), source, grid, radius, plan)
    flat = source.reshape(batch, height * width, channels)
    volume = tuple(_correlate(flat, level) for level in pooled)
    return Correlation(volume, None, grid, radius, plan)


def _correlate(source: Array, target: Array) -> Array:
    """(B, N, C) and (B, h, w, C) -> (B, N, h, w)."""
    product = jnp.einsum("bnc,bhwc->bnhw", source, target, precision=_HIGHEST)
    return product / math.sqrt(source.shape[-1])


def _all_levels(levels: tuple[Array, ...], positions: Array, radius: int, read: Reader) -> Array:
    """(B, N, h_l, w_l) per level and positions (B, N, 2) -> (B, N, L (2r + 1)^2)."""
    found = []
    for index, level in enumerate(levels):
        if 0 in level.shape[2:]:  # pooled away: nothing but outside
            found.append(jnp.zeros((*positions.shape[:2], (2 * radius + 1) ** 2), level.dtype))
            continue
        window = read(level, positions / 2**index, radius)
        found.append(window.reshape(*positions.shape[:2], -1))
    return jnp.concatenate(found, axis=-1)


def _split(positions: Array, length: int, radius: int) -> tuple[Array, Array]:
    """Whole and fractional part of positions, bounded to where a window can touch the grid."""
    bounded = jnp.clip(positions, min=-radius - 2, max=length + radius + 1)
    base = jnp.floor(bounded)
    return base, bounded - base


def _hat(level: Array, positions: Array, radius: int) -> Array:
    """Samples as sum_y hat(y) sum_x C[y, x] hat(x), hat = max(0, 1 - |distance|)."""
    offsets = jnp.arange(-radius, radius + 1, dtype=positions.dtype)

    def hat(axis: int, length: int) -> Array:
        base, share = _split(positions[..., axis], length, radius)
        cells = jnp.arange(length, dtype=positions.dtype)
        # Whole numbers first, so that the distance keeps all digits of the fraction.
        whole = base[..., None, None] + offsets[:, None] - cells
        return jnp.maximum(0, 1 - jnp.abs(whole + share[..., None, None]))

    along_x = jnp.einsum("bnyx,bnax->bnay", level, hat(0, level.shape[3]), precision=_HIGHEST)
    return jnp.einsum("bnay,bncy->bnac", along_x, hat(1, level.shape[2]), precision=_HIGHEST)


def _gathered(level: Array, positions: Array, radius: int) -> Array:
    """Samples by index: all of a window share their fractions, so 2r + 2 columns and rows do."""
    batch, queries, height, width = level.shape
    around = jnp.arange(-radius, radius + 2)

    def axis(index: int, length: int) -> tuple[Array, Array, Array]:
        base, share = _split(positions[..., index], length, radius)
        cells = base.astype(jnp.int32)[..., None] + around
        inside = (cells >= 0) & (cells < length)
        return jnp.clip(cells, min=0, max=length - 1), inside, share

    columns, inside_x, share_x = axis(0, width)
    rows, inside_y, share_y = axis(1, height)
    index = rows[:, :, None, :] * width + columns[:, :, :, None]
    size = around.shape[0]
    patch = jnp.take_along_axis(
        level.reshape(batch, queries, height * width),
        index.reshape(batch, queries, size * size),
        axis=-1,
        mode="promise_in_bounds",
    ).reshape(batch, queries, size, size)
    patch = jnp.where(inside_x[..., :, None] & inside_y[..., None, :], patch, 0)
    share_x, share_y = share_x[..., None, None], share_y[..., None, None]
    patch = patch[:, :, :-1] * (1 - share_x) + patch[:, :, 1:] * share_x
    return patch[..., :-1] * (1 - share_y) + patch[..., 1:] * share_y
