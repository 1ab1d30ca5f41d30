"""The alignment problem on every s-th pixel in x and y.

Cameras and pair similarities are some hundred numbers against millions of residuals, so a few
thousand pixels of every frame determine them as well as all (`solvers.depth_solve` then finds the
depth of every pixel). Point maps, flow vectors and pixel positions keep their full-resolution
meaning; only fewer pixels are looked at.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import objective
from align3r_jax.alignment.terms import pointmap
from align3r_jax.structs import AlignmentVariables, Array, OpticalFlow, PairPredictions

# Pixels of a frame that an automatic stride aims at: 6 at 512x288, 3 at 256x144. Fewer end above
# the loss of Adam over all pixels (`experiments.benchmark_lattice`).
TARGET_PIXELS = 4096


def stride_for(height: int, width: int, stride: int = 0, pixels: int = TARGET_PIXELS) -> int:
    """Returns the stride, for 0 the one that leaves about `pixels` pixels of a frame."""
    if stride > 0:
        return min(stride, height, width)
    return max(1, round(np.sqrt(height * width / pixels)))


def _every(stride: int) -> tuple[slice, slice]:
    return (slice(stride // 2, None, stride),) * 2


def images(values: Array, stride: int) -> Array:
    """Returns (..., h, w) of maps (..., H, W): rows and columns stride // 2 + k stride."""
    return values[(Ellipsis, *_every(stride))]


def predictions(full: PairPredictions, stride: int) -> PairPredictions:
    """Returns the point maps and confidences at the lattice's pixels; NumPy stays NumPy.

    Lattices of parts of the pairs may be concatenated, so the full size need never be complete.
    """
    rows, columns = _every(stride)
    return PairPredictions(
        pointmap1=full.pointmap1[:, rows, columns],
        pointmap2=full.pointmap2[:, rows, columns],
        confidence1=full.confidence1[:, rows, columns],
        confidence2=full.confidence2[:, rows, columns],
    )


def flow(full: OpticalFlow | None, stride: int) -> OpticalFlow | None:
    """Returns the fields at the lattice's pixels; vectors stay in pixels of the full image."""
    if full is None:
        return None
    rows, columns = _every(stride)
    return dataclasses.replace(
        full, flow=full.flow[:, rows, columns], weight=full.weight[:, rows, columns]
    )


def variables(full: AlignmentVariables, stride: int) -> AlignmentVariables:
    """Returns the variables with the depth of the lattice's pixels only."""
    return dataclasses.replace(full, log_depth=images(full.log_depth, stride))


def reduce(problem: objective.Problem, stride: int) -> objective.Problem:
    """Returns a full-size problem at the lattice's pixels; its variables are `variables(...)`."""
    height, width = problem.image_size

    def take(values):
        maps = values.reshape(*values.shape[:-1], height, width)
        return images(maps, stride).reshape(*values.shape[:-1], -1)

    data, fields, prior = problem.pointmaps, problem.flow, problem.depth_prior
    data = dataclasses.replace(
        data,
        points=pointmap.at_least_float32(take(data.points)),
        weight=pointmap.at_least_float32(take(data.weight)),
    )
    if fields is not None:
        fields = dataclasses.replace(
            fields, flow=take(fields.flow), trust=take(fields.trust), static=take(fields.static)
        )
    if prior is not None:
        prior = jax.tree.map(take, prior)
    return dataclasses.replace(
        problem,
        pointmaps=data,
        flow=fields,
        depth_prior=prior,
        initial_log_depth=take(problem.initial_log_depth),
        dynamic=take(problem.dynamic),
        pixels=take(problem.pixels),
    )


def at_pixels(reduced: objective.Problem, size: tuple[int, int], stride: int) -> objective.Problem:
    """Returns a problem that was prepared from lattice inputs, told where its pixels lie.

    The way for pairs that never are in memory together: `predictions` of each part, `flow`,
    `variables`, then `objective.prepare`, then this. size: (H, W) of the full image, to which
    focals, principal points and flow refer.
    """
    height, width = size
    y, x = np.meshgrid(*(np.arange(stride // 2, n, stride) for n in (height, width)), indexing="ij")
    pixels = jnp.asarray(np.stack([x.reshape(-1), y.reshape(-1)]), reduced.pixels.dtype)
    return dataclasses.replace(reduced, pixels=pixels, image_size=(int(height), int(width)))
