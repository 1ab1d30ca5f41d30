"""A seeded bank of mip-mapped texture tiles, made once in NumPy, sampled in JAX.

Every tile repeats. The mip level follows the footprint of a pixel: without it distant texture
aliases and no flow or matching survives. Tiles are stored as uint8, all levels in one row, so
that a lookup is one gather.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

TILE = 128  # texels along a side of level 0
LEVELS = 8  # 128, 64, ..., 1
_OFFSETS = np.cumsum([0] + [(TILE >> level) ** 2 for level in range(LEVELS)])[:-1].astype(np.int32)

TRAINING_SEED = 0
EVALUATION_SEED = 1_000_003  # tiles that training never sees


@struct.dataclass
class TextureBank:
    """texels: (tiles, 21845, 3) uint8, the levels of each tile one after another."""

    texels: jax.Array

    @property
    def num_tiles(self) -> int:
        return self.texels.shape[0]


def make_bank(seed: int = TRAINING_SEED, tiles: int = 96) -> TextureBank:
    """Draws `tiles` tiles: noise, checks, bricks, cells, stripes, grain, print, collages, plain."""
    rng = np.random.default_rng(seed)
    base = np.stack([_tile(rng) for _ in range(tiles)]).astype(np.float32)
    levels = [base]
    while levels[-1].shape[1] > 1:
        last = levels[-1]
        side = last.shape[1] // 2
        levels.append(last.reshape(tiles, side, 2, side, 2, 3).mean((2, 4)))
    flat = np.concatenate([level.reshape(tiles, -1, 3) for level in levels], axis=1)
    return TextureBank(jnp.asarray(np.round(flat * 255).astype(np.uint8)))


def sample(
    bank: TextureBank,
    tile: jax.Array,
    uv: tuple[jax.Array, jax.Array],
    level: jax.Array,
    trilinear: bool = False,
) -> jax.Array:
    """Returns (M, 3) colours in [0, 1] at uv (in tiles, wraps) and mip level (float, clipped).

    Bilinear in the nearest level, or trilinear between two.
    """
    level = jnp.clip(level, 0.0, LEVELS - 1.0)
    if not trilinear:
        return _bilinear(bank, tile, uv, jnp.round(level).astype(jnp.int32))
    lower = jnp.floor(level).astype(jnp.int32)
    upper = jnp.minimum(lower + 1, LEVELS - 1)
    mix = (level - lower)[:, None]
    return _bilinear(bank, tile, uv, lower) * (1 - mix) + _bilinear(bank, tile, uv, upper) * mix


def _bilinear(bank, tile, uv, level):
    side = TILE >> level
    row_start = jnp.asarray(_OFFSETS)[level]
    cells, weights = [], []
    for coordinate in uv:
        position = (coordinate - jnp.floor(coordinate)) * side - 0.5
        cell = jnp.floor(position)
        weights.append(position - cell)
        cells.append(cell.astype(jnp.int32))
    x0, y0 = cells[0] % side, cells[1] % side
    x1, y1 = (cells[0] + 1) % side, (cells[1] + 1) % side
    wx, wy = weights[0][:, None], weights[1][:, None]

    def texel(y, x):
        return bank.texels[tile, row_start + y * side + x].astype(jnp.float32)

    top = texel(y0, x0) * (1 - wx) + texel(y0, x1) * wx
    bottom = texel(y1, x0) * (1 - wx) + texel(y1, x1) * wx
    return (top * (1 - wy) + bottom * wy) * (1 / 255)


# ------------------------------------------------------------------------------ drawing of tiles

_Y, _X = np.mgrid[:TILE, :TILE] / TILE


def _noise(rng: np.random.Generator, slope: float) -> np.ndarray:
    """Periodic noise with spectrum 1 / f^slope, zero mean, unit deviation."""
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / TILE)
    spectrum = (rng.normal(size=radius.shape) + 1j * rng.normal(size=radius.shape)) / radius**slope
    noise = np.fft.irfft2(spectrum, s=(TILE, TILE))
    noise -= noise.mean()
    return noise / (noise.std() + 1e-6)


def _checks(rng):
    a, b = rng.integers(1, 9, 2)
    return (np.floor(_X * a * 2) + np.floor(_Y * b * 2)) % 2


def _bricks(rng):
    rows, columns = rng.integers(2, 12) * 2, rng.integers(1, 8) * 2
    row = np.floor(_Y * rows)
    u = _X * columns + 0.5 * (row % 2)
    shade = 0.75 + 0.25 * np.sin(row * 12.9 + (np.floor(u) % columns) * 78.2)
    return ((u % 1 > 0.06) & (_Y * rows % 1 > 0.1)) * shade


def _cells(rng):
    centres = rng.random((rng.integers(8, 60), 2))
    dx = np.abs(_X[None] - centres[:, :1, None])
    dy = np.abs(_Y[None] - centres[:, 1:, None])
    distance = np.hypot(np.minimum(dx, 1 - dx), np.minimum(dy, 1 - dy))
    return rng.random(len(centres))[distance.argmin(0)]


def _stripes(rng, noise):
    a, b = rng.integers(1, 8), rng.integers(0, 8)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (a * _X + b * _Y) + rng.uniform(0, 1.5) * noise)


def _grain(rng, noise):
    """Wood: long streaks along x, boards along y."""
    boards = rng.integers(1, 6)
    board = np.floor(_Y * boards)
    streaks = np.sin(
        2 * np.pi * rng.integers(4, 14) * _Y + 1.2 * np.roll(noise, 17, 0) + 9.1 * board
    )
    gap = (_Y * boards % 1) > 0.03 * boards / 2
    tone = 0.55 + 0.25 * np.sin(board * 37.7)
    return np.clip(tone + 0.22 * streaks + 0.1 * _noise(rng, 0.5), 0, 1) * gap


def _print(rng):
    """Rows of dark strokes on light ground, as on paper, labels, screens, spines."""
    lines, strokes = int(rng.integers(6, 22)), int(rng.integers(20, 60))
    ink = rng.random((lines, strokes)) < 0.7
    ink &= np.arange(strokes)[None] < rng.integers(strokes // 3, strokes + 1, (lines, 1))
    line, stroke = (_Y * lines).astype(int), (_X * strokes).astype(int)
    body = (_Y * lines % 1 > 0.35) & (_Y * lines % 1 < 0.85)
    return 1.0 - (ink[line, stroke] & body)


def _collage(rng, tile, shade):
    for _ in range(rng.integers(4, 40)):
        x, y = rng.random(2)
        width, height = rng.uniform(0.02, 0.3, 2)
        dx = np.abs((_X - x + 0.5) % 1 - 0.5)
        dy = np.abs((_Y - y + 0.5) % 1 - 0.5)
        if rng.random() < 0.6:
            inside = (dx < width / 2) & (dy < height / 2)
        else:
            inside = np.hypot(dx / width, dy / height) < 0.5
        colour = rng.uniform(0, 1, 3)
        colour = colour.mean() + rng.uniform(0, 1) * (colour - colour.mean())
        tile = np.where(inside[..., None], colour * (0.8 + 0.2 * shade), tile)
    return tile


def _tile(rng: np.random.Generator) -> np.ndarray:
    """One tile (128, 128, 3) in [0, 1]."""
    colours = rng.uniform(0.05, 0.95, (3, 3))
    saturation = rng.choice([0.15, 0.4, 1.0], p=[0.45, 0.3, 0.25])  # most surfaces are greyish
    colours = saturation * colours + (1 - saturation) * colours.mean(1, keepdims=True)
    coarse, fine = _noise(rng, rng.uniform(0.8, 2.0)), _noise(rng, rng.uniform(0.4, 1.6))
    kind = rng.integers(0, 9)
    mask = [
        lambda: 1 / (1 + np.exp(-1.5 * coarse)),
        lambda: 1 / (1 + np.exp(-8 * coarse)),
        lambda: _checks(rng),
        lambda: _bricks(rng),
        lambda: _cells(rng),
        lambda: _stripes(rng, coarse),
        lambda: _grain(rng, coarse),
        lambda: _print(rng),
        lambda: np.zeros((TILE, TILE)),
    ][kind]()[..., None]
    shade = 1 / (1 + np.exp(-2 * fine))[..., None]
    tile = colours[0] * (1 - mask) + colours[1] * mask
    tile = tile * (1 - 0.3 * shade * rng.random()) + colours[2] * 0.3 * shade * rng.random()
    tile = tile + rng.uniform(0, 0.06) * _noise(rng, 0.3)[..., None]
    if rng.random() < 0.25:
        tile = _collage(rng, tile, shade)
    return np.clip(tile, 0, 1)
