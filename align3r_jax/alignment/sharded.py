"""Alignment over a mesh of devices: clips side by side, the pairs of a clip divided.

The mesh has two axes. Over "clips" nothing is ever exchanged: every device runs its own clips to
the end. Over "pairs" every device holds the point maps and flow fields of its share of the pairs;
variables are the same on all devices of a clip. What is exchanged:

| solver | when | what |
|---|---|---|
| Adam | every iteration | the flow's sums; the gradient of the log depth; all else as a vector |
| Gauss-Newton | once per set of masks | the lattice, so that a device has whole frames |
| | every step | the frames' equations; the steps of their depths; the losses as a vector |
| | every round of the depth of all pixels | two sums per pixel |
| both | once per set of masks | the votes of the masks |
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from align3r_jax.alignment import batch as batch_lib
from align3r_jax.alignment import solve
from align3r_jax.alignment.solvers import gauss_newton_slots as slots_lib
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.structs import AlignmentPriors, AlignmentVariables, Array

CLIPS, PAIRS = "clips", "pairs"


def make_mesh(clips: int = 1, pairs: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of clips x pairs devices (default: of all processes, in order).

    Raises UserError if there are not as many devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) < clips * pairs:
        raise UserError(
            f"A mesh of {clips} x {pairs} needs {clips * pairs} devices, there are {len(devices)}; "
            "lower clips or pairs."
        )
    chosen = np.asarray(devices[: clips * pairs]).reshape(clips, pairs)
    return Mesh(chosen, (CLIPS, PAIRS), axis_types=(AxisType.Auto,) * 2)


def align(
    batch: batch_lib.Batch, config: AlignmentConfig, mesh: Mesh
) -> tuple[AlignmentVariables, dict[str, Array]]:
    """`batch.align` over the devices of a mesh; every process of a run calls it alike.

    One big clip is a batch of one, `batch.pad_and_stack([clip], multiple=mesh.shape["pairs"])`.
    The result is divided over "clips"; `collect` brings it to the host.

    Raises:
        UserError: the clips, or the pairs of a clip, do not divide evenly among the devices.
    """
    degrees = solve.degrees(batch.graph, batch.priors, config)
    return compiled(mesh, config, degrees)(*place(batch, mesh))


@functools.lru_cache(maxsize=16)
def compiled(mesh: Mesh, config: AlignmentConfig, degrees: slots_lib.Degrees | None = None) -> Any:
    """Returns the jitted function of (predictions, graph, priors) as `place` lays them out.

    degrees: of `solve.degrees`.
    """
    axis = PAIRS if mesh.shape[PAIRS] > 1 else None

    def local(predictions, graph, priors):
        run = functools.partial(solve.run, config=config, axis=axis, degrees=degrees)
        return jax.vmap(run)(predictions, graph, priors)

    def whole(predictions, graph, priors):
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=_layout(predictions, graph, priors),
            out_specs=PartitionSpec(CLIPS),
            check_vma=False,
        )(predictions, graph, priors)

    return jax.jit(whole)


def place(batch: batch_lib.Batch, mesh: Mesh) -> tuple[Any, Any, AlignmentPriors]:
    """Returns predictions, graph and priors of a batch as arrays divided over the mesh.

    Every process gives the same batch and keeps its own part.
    """
    clips, pairs = batch.graph.pairs.shape[:2]
    for count, axis in ((clips, CLIPS), (pairs, PAIRS)):
        if count % mesh.shape[axis]:
            raise UserError(
                f"{count} {axis} cannot be divided among {mesh.shape[axis]} devices evenly; stack "
                "a multiple of clips, or give pad_and_stack the number of devices as `multiple`."
            )
    parts = (batch.predictions, batch.graph, batch.priors)

    def put(values, spec):
        values = np.asarray(values)
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, parts, _layout(*parts))


def _layout(predictions: Any, graph: Any, priors: AlignmentPriors) -> tuple[Any, Any, Any]:
    """The tree of partition specs: all over clips; predictions, pairs and flow over pairs too."""

    def over(spec, tree):
        return jax.tree.map(lambda _: spec, tree)

    divided, same = PartitionSpec(CLIPS, PAIRS), PartitionSpec(CLIPS)
    return (
        over(divided, predictions),
        over(divided, graph),
        dataclasses.replace(over(same, priors), flow=over(divided, priors.flow)),
    )


def collect(tree: Any) -> Any:
    """Returns the tree as NumPy arrays, whole, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
