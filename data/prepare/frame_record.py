"""One training frame as bytes of a record, and back.

A record is a `tf.train.Example`, so that TensorFlow Datasets reads the files as well:

| feature | content |
|---|---|
| `scene`, `frame` | names, text |
| `frame_index` | int32, place of the frame in its scene in the source (dropped ones leave gaps) |
| `image` | (H, W, 3) uint8, JPEG or PNG |
| `depth` | (H, W) float32, z, 0: unknown; or, with depth=log16, |
| `depth_log16`, `depth_near_far` | (H, W, 1) uint16 and (2,) float32 of `log_depth` |
| `mask` | (H, W, 1) uint8, 255 where the depth is known |
| `intrinsics` | (3, 3) float64 pixels, centre of the first pixel at (0, 0) |
| `world_from_cam` | (4, 4) float64, OpenCV axes |
| `prior_depth` (or `prior_depth_log16`, `prior_depth_near_far`) | (H, W) as depth, NaN: unknown |
| `prior_focal` | float32 pixels, NaN: unknown |

TensorFlow Datasets is needed, TensorFlow is not.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from align3r_jax.errors import UserError
from data.prepare import log_depth
from data.prepare.settings import Settings
from data.readers.training import TrainingFrame


class Encoding(NamedTuple):
    """What of the settings decides about a record; see `Settings`."""

    image: str
    quality: int
    depth: str
    prior: bool

    @classmethod
    def of(cls, settings: Settings) -> Encoding:
        """The encoding that settings ask for."""
        return cls(settings.image, settings.quality, settings.depth, settings.prior is not None)


def check_installed() -> None:
    """Raises UserError if what records need is not installed."""
    for name in ("tensorflow_datasets", "array_record", "importlib_resources"):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"Prepared records need the package {name}: pip install -r requirements.txt, or "
                "prepare with --format=processed."
            )


@functools.lru_cache(maxsize=16)
def features(encoding: Encoding, mask: bool = True) -> Any:
    """Returns the `tfds.features.FeaturesDict` of the table above; mask=False leaves that out."""
    from tensorflow_datasets import features as tfds_features

    def exact(*shape: int) -> Any:  # a float list of an Example holds 32 bits only
        return tfds_features.Tensor(shape=shape, dtype=np.float64, encoding="bytes")

    def plane(name: str) -> dict[str, Any]:
        if encoding.depth == "float32":
            shape = (None, None)
            return {name: tfds_features.Tensor(shape=shape, dtype=np.float32, encoding="zlib")}
        return {
            f"{name}_log16": tfds_features.Image(
                shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
            ),
            f"{name}_near_far": tfds_features.Tensor(shape=(2,), dtype=np.float32),
        }

    content = {
        "scene": tfds_features.Text(),
        "frame": tfds_features.Text(),
        "frame_index": tfds_features.Scalar(dtype=np.int32),
        "image": tfds_features.Image(shape=(None, None, 3), encoding_format=encoding.image),
        **plane("depth"),
        "intrinsics": exact(3, 3),
        "world_from_cam": exact(4, 4),
    }
    if mask:
        content["mask"] = tfds_features.Image(shape=(None, None, 1), encoding_format="png")
    if encoding.prior:
        content |= plane("prior_depth")
        content["prior_focal"] = tfds_features.Scalar(dtype=np.float32)
    return tfds_features.FeaturesDict(content)


def example(
    frame: TrainingFrame, scene: str, name: str, index: int, encoding: Encoding
) -> dict[str, Any]:
    """Returns the frame as `features(encoding)` takes it, for `encode` and for TFDS builders.

    Raises UserError if it lacks the prior of the encoding or 16 bits cannot hold it.
    """
    content: dict[str, Any] = {
        "scene": scene,
        "frame": name,
        "frame_index": index,
        "image": io.BytesIO(picture_bytes(frame.image, encoding.image, encoding.quality)),
        "mask": io.BytesIO(picture_bytes(mask_of(frame), "png")),
        "intrinsics": np.asarray(frame.intrinsics, np.float64),
        "world_from_cam": np.asarray(frame.world_from_cam, np.float64),
    }
    planes = {"depth": frame.depth}
    if encoding.prior:
        if frame.prior_depth is None:
            raise UserError(f"Frame '{name}' of '{scene}' has no depth prior.")
        planes["prior_depth"] = frame.prior_depth
        focal = frame.prior_focal
        content["prior_focal"] = np.float32(math.nan if focal is None else focal)
    for key, plane in planes.items():
        if encoding.depth == "float32":
            content[key] = np.asarray(plane, np.float32)
        else:
            codes, near_far = log_depth.encode(plane)
            content[f"{key}_log16"] = io.BytesIO(picture_bytes(codes, "png"))
            content[f"{key}_near_far"] = near_far
    return content


def encode(frame: TrainingFrame, scene: str, name: str, index: int, encoding: Encoding) -> bytes:
    """Returns the record; equal frames give equal bytes."""
    from tensorflow_datasets.proto import tf_example_pb2

    record = features(encoding).serialize_example(example(frame, scene, name, index, encoding))
    # The order of a map is up to chance unless asked for.
    return tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)


def decode(record: bytes, encoding: Encoding, with_prior: bool) -> tuple[TrainingFrame, str]:
    """Returns the frame and its scene's name; the prior only if asked for. Inverse of `encode`."""
    wanted = encoding._replace(prior=encoding.prior and with_prior)
    found = features(wanted, mask=False).deserialize_example_np(record)

    def plane(name: str) -> np.ndarray:
        if encoding.depth == "float32":
            return found[name]
        return log_depth.decode(found[f"{name}_log16"][..., 0], found[f"{name}_near_far"])

    prior_depth = prior_focal = None
    if wanted.prior:
        prior_depth, focal = plane("prior_depth"), float(found["prior_focal"])
        prior_focal = None if math.isnan(focal) else focal
    frame = TrainingFrame(
        found["image"], plane("depth"), found["intrinsics"], found["world_from_cam"],
        prior_depth, prior_focal,
    )  # fmt: skip
    return frame, found["scene"].decode()


def mask_of(frame: TrainingFrame) -> np.ndarray:
    """(H, W) uint8: 255 where the depth is known, else 0."""
    return np.where(frame.depth > 0, np.uint8(255), np.uint8(0))


def picture_bytes(image: np.ndarray, kind: str, quality: int = 75) -> bytes:
    """Returns the bytes of a JPEG or PNG file. 75 is Pillow's default, which published data has."""
    buffer = io.BytesIO()
    options = {"quality": quality} if kind == "jpeg" else {}
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()
