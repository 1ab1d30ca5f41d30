"""A problem filled up to a larger shape with frames and pairs that hold NaN."""

import dataclasses

import numpy as np

from align3r_jax.structs import AlignmentVariables, OpticalFlow, PairPredictions

FRAME_GROUPS = ("log_depth", "frame_quaternion", "frame_translation", "principal_point")


def fill(values, count, value=np.nan):
    """The array with `count` more entries at the end of its first axis."""
    values = np.asarray(values)
    extra = np.full((count, *values.shape[1:]), value, values.dtype)
    return np.concatenate([values, extra])


def variables(tree: AlignmentVariables, frames: int, pairs: int) -> AlignmentVariables:
    """NaN in `frames` more frames and `pairs` more pairs; a shared focal stays one."""
    changes = {}
    for field in dataclasses.fields(tree):
        name = field.name
        count = pairs if name.startswith("pair") else frames
        if name == "log_focal" and tree.log_focal.shape[0] == 1:
            count = 0
        changes[name] = fill(getattr(tree, name), count)
    return AlignmentVariables(**changes)


def predictions(values: PairPredictions, pairs: int) -> PairPredictions:
    names = ("pointmap1", "pointmap2", "confidence1", "confidence2")
    return PairPredictions(**{name: fill(getattr(values, name), pairs) for name in names})


def flow(values: OpticalFlow, fields: int, frame: int) -> OpticalFlow:
    """Fields of NaN from and to the frame `frame`."""
    return OpticalFlow(
        pairs=fill(values.pairs, fields, frame),
        flow=fill(values.flow, fields),
        weight=fill(values.weight, fields),
    )


def without(tree: AlignmentVariables, frames: int, pairs: int) -> AlignmentVariables:
    """The first `frames` frames and `pairs` pairs."""
    changes = {}
    for field in dataclasses.fields(tree):
        count = pairs if field.name.startswith("pair") else frames
        changes[field.name] = np.asarray(getattr(tree, field.name))[:count]
    return AlignmentVariables(**changes)
