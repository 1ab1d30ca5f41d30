"""The pytrees that travel between stages, one frozen dataclass each.

Arrays may be NumPy or JAX arrays; axis order is (batch, frame or pair; height; width; channel).
Cameras follow OpenCV (x right, y down, z forward); poses are `world_from_cam`; focals and
principal points are in pixels of the array they travel with, pixel centres at integers.

Letters in shapes: T frames, P pairs (ordered), D directed flow fields, H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import struct

Array = Any  # np.ndarray or jax.Array


def _expect(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


@struct.dataclass
class WorkingSize:
    """How a frame got from its original size to the working size: resize, then centre crop.

    All sizes are (height, width). A point at original pixel x lies at working pixel
    `(x + 0.5) * resized / original - 0.5 - crop` per axis.
    """

    original: tuple[int, int] = struct.field(pytree_node=False)
    resized: tuple[int, int] = struct.field(pytree_node=False)
    crop: tuple[int, int] = struct.field(pytree_node=False)  # top, left; (0, 0) if none
    working: tuple[int, int] = struct.field(pytree_node=False)
    # Without a crop the pixels are resized twice; this is the size between. None: resized once.
    between: tuple[int, int] | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class Frames:
    """The video at working size.

    images: (T, H, W, 3) uint8 RGB. times: (T,) float64 seconds. names: one per frame, unique.
    """

    images: Array
    times: Array
    size: WorkingSize = struct.field(pytree_node=False)
    names: tuple[str, ...] = struct.field(pytree_node=False)

    @property
    def num_frames(self) -> int:
        return self.images.shape[0]

    def check(self) -> Frames:
        """Returns self. Raises ValueError if shapes, types or names do not fit together."""
        _expect(
            self.images.ndim == 4 and self.images.shape[-1] == 3 and self.images.dtype == np.uint8,
            "Frames.images must be (T, H, W, 3) uint8, got "
            f"{self.images.shape} {self.images.dtype}.",
        )
        _expect(
            tuple(self.images.shape[1:3]) == self.size.working,
            f"Frames.images are {self.images.shape[1:3]}, the working size {self.size.working}.",
        )
        _expect(
            len(self.names) == len(set(self.names)) == len(self.times) == self.num_frames,
            f"{self.num_frames} frames need as many unique names and times, got "
            f"{len(set(self.names))} and {len(self.times)}.",
        )
        return self


@struct.dataclass
class KnownCameras:
    """What a user knows of the cameras; NaN where nothing is known.

    intrinsics: (3, 3) of every frame, or (T, 3, 3), pixels of images of `image_size`, pixel
    centres at integers. image_size: (2,) or (T, 2), height and width of these images; None or NaN:
    the original frames. world_from_cam: (T, 4, 4), any world, any unit, x right, y down, z forward.

    Without deviations what is known is held fixed. With them it is a soft prior of these standard
    deviations, one number or one per frame: rotation_deviation in degrees, translation_deviation in
    the unit of the poses (`relative_translation`: shares of the spread of the known positions),
    focal_deviation a share of the focal.
    """

    intrinsics: Array | None = None
    world_from_cam: Array | None = None
    image_size: Array | None = None
    rotation_deviation: Array | None = None
    translation_deviation: Array | None = None
    focal_deviation: Array | None = None
    relative_translation: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class DepthPrior:
    """Monocular depth of every frame.

    native: (T, Hd, Wd) float32 as the source gave it (depth, or inverse depth if `inverse`).
    depth: (T, H, W) float32 > 0 at working size, true depth up to scale, NaN where missing.
    focal: (T,) float32 in pixels of the working size, or None if the source does not know it.
    metric: depth is in metres.
    """

    native: Array
    depth: Array
    focal: Array | None
    name: str = struct.field(pytree_node=False)
    inverse: bool = struct.field(pytree_node=False, default=False)
    metric: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class PairGraph:
    """Ordered pairs (i, j). In a symmetric graph pair k and k + P/2 are reverses.

    pairs: (P, 2) int32 NumPy array (host: graphs shape the computation).
    """

    pairs: np.ndarray
    num_frames: int = struct.field(pytree_node=False)
    symmetric: bool = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)

    @property
    def num_pairs(self) -> int:
        return self.pairs.shape[0]


@struct.dataclass
class PairPredictions:
    """What a pairwise predictor says of every pair (i, j), in the order of the graph.

    pointmap1: (P, H, W, 3) points of frame i; pointmap2: points of frame j;
    both in the camera frame of i, in a scale of the pair's own.
    confidence1, confidence2: (P, H, W), > 1 where the points mean anything, 1 where they do not.
    """

    pointmap1: Array
    pointmap2: Array
    confidence1: Array
    confidence2: Array

    def check(self, graph: PairGraph) -> PairPredictions:
        """Returns self. Raises ValueError if the arrays do not fit the graph or each other."""
        pairs, height, width = self.confidence1.shape
        _expect(
            pairs == graph.num_pairs,
            f"Predictions hold {pairs} pairs, the graph {graph.num_pairs}.",
        )
        for name in ("pointmap1", "pointmap2"):
            shape = tuple(getattr(self, name).shape)
            _expect(
                shape == (pairs, height, width, 3),
                f"PairPredictions.{name} is {shape}, expected {(pairs, height, width, 3)}.",
            )
        _expect(
            self.confidence2.shape == self.confidence1.shape,
            f"Confidences differ in shape: {self.confidence1.shape}, {self.confidence2.shape}.",
        )
        return self


@struct.dataclass
class OpticalFlow:
    """Directed flow fields between frames.

    pairs: (D, 2) int32 NumPy, (source, target) frame of each field.
    flow: (D, H, W, 2) float32 pixels (x, y); pixel p of the source lands on p + flow.
    weight: (D, H, W) float32 in [0, 1], how far to trust it (1 everywhere: use all).
    """

    pairs: np.ndarray
    flow: Array
    weight: Array
    name: str = struct.field(pytree_node=False, default="flow")

    def index_of(self, pairs: np.ndarray) -> np.ndarray:
        """Returns (P,) int32: the field of each directed pair. KeyError if one is missing."""
        position = {tuple(pair): k for k, pair in enumerate(self.pairs.tolist())}
        return np.array([position[tuple(pair)] for pair in np.asarray(pairs).tolist()], np.int32)


@struct.dataclass
class AlignmentVariables:
    """Everything the aligner may change (`alignment` of the docs, parameters of §3 of the paper).

    log_depth: (T, H, W). frame_quaternion: (T, 4) x y z w, any length. frame_translation: (T, 3)
    and pair_translation: (P, 3) are coded, sign(t) ln(1 + |t|). log_focal: (T,) or (1,) if
    shared, focal_break * ln(focal). principal_point: (T, 2), tens of pixels from (W/2, H/2).
    pair_quaternion: (P, 4). pair_log_scale: (P,). pair_adaptor: (P, 2).
    """

    log_depth: Array
    frame_quaternion: Array
    frame_translation: Array
    log_focal: Array
    principal_point: Array
    pair_quaternion: Array
    pair_translation: Array
    pair_log_scale: Array
    pair_adaptor: Array


@struct.dataclass
class AlignmentPriors:
    """What an alignment may know beside point maps; every part is optional.

    flow: fields between frames, for the flow term and the motion masks. known: cameras or depth
    (`alignment.variables.Known`). dynamic_mask: (T, H, W) bool, grey in [0, 1] or uint8, what moves
    by itself; None: found from the flow. ignore: (T, H, W) bool, pixels that no term may look at.
    depth: (T, H, W), a depth prior up to scale, NaN where unknown (`config.depth_prior_weight`).
    start: where the variables start, instead of a start found from the pairs.
    frame_valid (T,), pair_valid (P,): bool, False where a frame or a pair only fills up the shape
    of a batch, whatever it holds; None: all valid.
    """

    flow: OpticalFlow | None = None
    known: Any = None
    dynamic_mask: Array | None = None
    ignore: Array | None = None
    depth: Array | None = None
    start: AlignmentVariables | None = None
    frame_valid: Array | None = None
    pair_valid: Array | None = None


@struct.dataclass
class TermWeights:
    """Weights of the terms as arrays, (): what gradients may be taken by. None: the config's.

    A weight given here always counts, also where the config's is 0 and its term left out.
    """

    smoothness: Array | None = None
    flow: Array | None = None
    depth_regulariser: Array | None = None
    known_camera: Array | None = None
    depth_prior: Array | None = None


@struct.dataclass
class Scene:
    """The result, at working size, in one world frame (that of the first frame's camera if free).

    depth: (T, H, W) float32. world_from_cam: (T, 4, 4). intrinsics: (T, 3, 3) pixels of the
    working size. confidence: (T, H, W), > 1. dynamic_mask: (T, H, W) bool, True where something
    moves by itself. colours: (T, H, W, 3) uint8. times: (T,) seconds. pair_losses: (P,) mean
    weighted residual of each pair after alignment. trace: name -> (iterations,) loss terms.
    """

    depth: Array
    world_from_cam: Array
    intrinsics: Array
    confidence: Array
    dynamic_mask: Array
    colours: Array
    times: Array
    pair_losses: Array
    trace: dict[str, Array]
    size: WorkingSize = struct.field(pytree_node=False)
    names: tuple[str, ...] = struct.field(pytree_node=False)
    metric: bool = struct.field(pytree_node=False, default=False)
