"""Optical flow on disk: Middlebury .flo, npy, npz and KITTI's 16-bit PNG.

In memory a flow is (H, W, 2) float32, (x, y) in pixels of its own grid, NaN where unknown.
The flow from frame i to frame j of a clip lies in `<i>_<j>.flo` (or another suffix), where i and j
are the frames' names or their positions in the clip, leading zeros allowed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.structs import WorkingSize

SUFFIXES = (".flo", ".npy", ".npz", ".png")
TAG = np.float32(202021.25)  # the bytes "PIEH", of .flo as of all files of Sintel
_FLO_UNKNOWN = 1e9  # Middlebury: larger components mean "unknown"
_KITTI_ZERO, _KITTI_SCALE = 32768.0, 64.0


def read_flow(path: str | Path) -> np.ndarray:
    """Returns (H, W, 2) float32 pixels (x, y), NaN where unknown.

    npz: the array `flow`, or the only one. PNG (KITTI): (value - 2^15) / 64 of the red and green
    channel, known where blue is not 0.
    Raises UserError if the file is unreadable, of another kind or shape.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], np.ndarray]]
    readers = {".flo": _read_flo, ".npy": np.load, ".npz": _read_npz, ".png": _read_kitti}
    if path.suffix.lower() not in readers:
        raise UserError(f"'{path}' is no flow file; known are {', '.join(SUFFIXES)}.")
    try:
        flow = readers[path.suffix.lower()](path)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"The flow file '{path}' cannot be read ({error}).") from error
    if flow.ndim != 3 or flow.shape[-1] != 2 or not np.issubdtype(flow.dtype, np.number):
        raise UserError(
            f"'{path}' holds an array of shape {flow.shape} and type {flow.dtype}; expected a "
            "flow, (H, W, 2) numbers."
        )
    flow = flow.astype(np.float32)
    known = (np.abs(flow) < _FLO_UNKNOWN).all(axis=-1, keepdims=True)  # False for NaN
    return np.where(known, flow, np.float32(np.nan))


def write_flow(path: str | Path, flow: np.ndarray) -> None:
    """Writes an (H, W, 2) flow in the format of the suffix; NaN stays unknown.

    PNG keeps 1/64 pixel. Raises UserError if the suffix is unknown or, for PNG, a component is
    beyond 511 pixels.
    """
    path, flow = Path(path), np.asarray(flow, np.float32)
    suffix = path.suffix.lower()
    if suffix == ".flo":
        size = np.array([flow.shape[1], flow.shape[0]], "<i4")
        values = np.where(np.isfinite(flow), flow, np.float32(10 * _FLO_UNKNOWN)).astype("<f4")
        path.write_bytes(TAG.astype("<f4").tobytes() + size.tobytes() + values.tobytes())
    elif suffix == ".npy":
        np.save(path, flow)
    elif suffix == ".npz":
        np.savez_compressed(path, flow=flow)
    elif suffix == ".png":
        known = np.isfinite(flow).all(axis=-1)
        values = np.round(np.where(known[..., None], flow, 0) * _KITTI_SCALE + _KITTI_ZERO)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"The flow for '{path.name}' exceeds 511 pixels; write .flo instead.")
        channels = np.dstack([known, values[..., 1], values[..., 0]]).astype(np.uint16)
        if not cv2.imwrite(str(path), channels):
            raise UserError(f"'{path}' cannot be written.")
    else:
        raise UserError(f"'{path}' is no flow file; known are {', '.join(SUFFIXES)}.")


def find_flow(
    folder: str | Path, source: int, target: int, names: Sequence[str] = ()
) -> Path | None:
    """Returns the file of the flow from frame `source` to frame `target`, or None.

    names: the frames' names; they are tried before the numbers.
    """
    folder = Path(folder)
    stems = [f"{names[source]}_{names[target]}"] if names else []
    stems += [f"{source:0{digits}d}_{target:0{digits}d}" for digits in range(1, 9)]
    paths = (folder / (stem + suffix) for stem in stems for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def to_working_size(flow: np.ndarray, size: WorkingSize) -> np.ndarray:
    """Returns (H, W, 2) float32: a flow of the original frames, in pixels of the working size.

    flow' = flow * resized / own size per axis, bilinear; NaN wherever an unknown pixel takes part.
    """
    resized = cv2.resize(flow, size.resized[::-1], interpolation=cv2.INTER_LINEAR)
    factor = np.array(size.resized[::-1]) / np.array(flow.shape[1::-1])
    (top, left), (height, width) = size.crop, size.working
    return (resized * factor.astype(np.float32))[top : top + height, left : left + width]


def _read_flo(path: Path) -> np.ndarray:
    data = path.read_bytes()
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != TAG:
        raise UserError(f"'{path}' is no .flo file: its first four bytes are not 'PIEH'.")
    width, height = np.frombuffer(data, "<i4", 2, offset=4)
    if len(data) != 12 + 8 * int(width) * int(height):
        raise UserError(
            f"'{path}' says {width} x {height} pixels but has {len(data)} bytes, expected "
            f"{12 + 8 * int(width) * int(height)}."
        )
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2)


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as stored:
        key = "flow" if "flow" in stored else stored.files[0] if len(stored.files) == 1 else None
        if key is None:
            raise UserError(f"'{path}' has no array 'flow'; it holds {sorted(stored.files)}.")
        return stored[key]


def _read_kitti(path: Path) -> np.ndarray:
    channels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if channels is None or channels.dtype != np.uint16 or channels.ndim != 3:
        raise UserError(f"'{path}' is no KITTI flow: 16 bits in three channels are expected.")
    flow = (channels[..., 2:0:-1].astype(np.float32) - _KITTI_ZERO) / _KITTI_SCALE
    return np.where(channels[..., :1] > 0, flow, np.float32(np.nan))
