"""Depth maps on disk: npz (as Align3R writes them), npy, 16-bit PNG, PFM and OpenEXR.

In memory a depth map is (H, W) float32 with NaN where nothing is known.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import exr, images, pfm, png16

DEFAULT_SCALE = 1000.0  # PNG: values per metre, i.e. millimetres
SIDECAR = "depth.json"  # in the folder of the maps: {"scale": 5000, "inverse": false, ...}
SUFFIXES = (".npz", ".npy", ".pfm", ".png", ".exr")
_DEPTH_PRO, _DEPTH_ANYTHING, _METRIC = "depthpro", "depthanything", "depthmetric"
# What may stand between a frame's name and the suffix, in order of preference.
_ENDINGS = (
    *(f"_pred_depth_{name}" for name in (_DEPTH_PRO, _DEPTH_ANYTHING, _METRIC)), "_depth", "",
)  # fmt: skip
_MAX_PNG = 65535


class DepthMap(NamedTuple):
    """depth: (H, W) float32, NaN = missing. focal: pixels of this map, or None."""

    depth: np.ndarray
    focal: float | None


@dataclasses.dataclass(frozen=True)
class DepthFolder:
    """The depth maps of a clip. depth: (T, H, W) float32, NaN = missing. focal: (T,) or None.

    inverse: larger is nearer. metric: metres (for inverse, 1 / metres).
    """

    depth: np.ndarray
    focal: np.ndarray | None
    inverse: bool
    metric: bool
    paths: tuple[Path, ...]


def read_depth(path: str | Path, *, scale: float | None = None) -> DepthMap:
    """Returns one depth map and the focal stored with it.

    npz: `depth` and, if there, `focallength_px` (a number or a 3x3 matrix); npy; PFM of either
    byte order; OpenEXR; 16-bit PNG: value / scale, 0 is missing. scale: values per unit of a
    PNG; default from the folder's `depth.json`, else 1000 (millimetres to metres). (1, H, W) and
    (H, W, 1) are squeezed. Non-finite and negative values are missing.
    Raises UserError if the file is unreadable, of another kind, or nothing in it is known.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None and path.suffix.lower() != ".png":
        raise UserError(f"'{path}' is no depth file; known are {', '.join(SUFFIXES)}.")
    try:
        if reader is None:
            depth, focal = _read_png(path, scale or read_sidecar(path.parent).get("scale")), None
        else:
            depth, focal = reader(path)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, zipfile.BadZipFile) as error:
        raise UserError(f"The depth file '{path}' cannot be read ({error}).") from error
    if np.ndim(depth) == 3 and 1 in (depth.shape[0], depth.shape[-1]):
        depth = depth[0] if depth.shape[0] == 1 else depth[..., 0]
    if np.ndim(depth) != 2 or not np.issubdtype(depth.dtype, np.number):
        raise UserError(
            f"'{path}' holds an array of shape {depth.shape} and type {depth.dtype}; expected one "
            "depth map, (H, W) numbers."
        )
    with np.errstate(over="ignore"):
        depth = depth.astype(np.float32)
    with np.errstate(invalid="ignore"):
        depth = np.where(np.isfinite(depth) & (depth >= 0), depth, np.float32(np.nan))
    if np.isnan(depth).all():
        raise UserError(f"The depth file '{path}' holds no finite depth at all.")
    return DepthMap(depth, focal)


def write_depth(
    path: str | Path,
    depth: np.ndarray,
    *,
    focal: float | None = None,
    scale: float = DEFAULT_SCALE,
) -> None:
    """Writes an (H, W) depth map in the format of the suffix; NaN stays missing.

    npz: keys `depth` and, with a focal, `focallength_px`. PNG: round(depth * scale), missing
    and zero depth as 0; a scale other than 1000 must be told to readers (`depth.json`).
    Raises UserError if the suffix is unknown or a depth does not fit into 16 bits.
    """
    path, depth = Path(path), np.asarray(depth, np.float32)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        if focal is None:
            np.savez_compressed(path, depth=depth)
        else:
            np.savez_compressed(path, depth=depth, focallength_px=np.float32(focal))
    elif suffix == ".npy":
        np.save(path, depth)
    elif suffix == ".pfm":
        pfm.write_pfm(path, depth)
    elif suffix == ".exr":
        exr.write_exr(path, depth)
    elif suffix == ".png":
        values = np.round(np.where(np.isfinite(depth), depth, 0).astype(np.float64) * scale)
        if values.min() < 0 or values.max() > _MAX_PNG:
            raise UserError(
                f"Depth from {np.nanmin(depth):g} to {np.nanmax(depth):g} does not fit into the "
                f"16 bits of '{path.name}' at {scale:g} values per unit; write .npy or a smaller "
                "scale."
            )
        Image.fromarray(values.astype(np.uint16)).save(path)
    else:
        raise UserError(f"'{path}' is no depth file; known are {', '.join(SUFFIXES)}.")


def find_depth_files(source: str | Path, names: Sequence[str]) -> list[Path]:
    """Returns one depth file per frame as `match_depth_files`; UserError if frames have none."""
    matched = match_depth_files(source, names)
    lacking = [name for name, path in zip(names, matched) if path is None]
    if lacking:
        raise UserError(
            f"'{source}' holds no depth map named after {len(lacking)} of {len(names)} frames, the "
            f"first '{lacking[0]}' (expected '{lacking[0]}.npz', "
            f"'{lacking[0]}_pred_depth_depthpro.npz' or .npy, .pfm, .png, .exr). Name them after "
            "the frames or give exactly one per frame."
        )
    return [path for path in matched if path is not None]


def match_depth_files(source: str | Path, names: Sequence[str]) -> list[Path | None]:
    """Returns the depth file of every frame, None where there is none, from a folder or a glob.

    By name first: for frame `shot7` the files `shot7_pred_depth_depthpro.npz`,
    `shot7_pred_depth_depthanything.npz`, `shot7_depth.npz`, `shot7.npz` or the same with .npy,
    .pfm, .png, .exr (a glob chooses where there are several kinds). If no frame is found by its
    name and there are as many files as frames, they are matched in natural order.
    Raises UserError if the folder is missing or holds no depth maps.
    """
    if images.is_glob(source):
        pattern = Path(source).expanduser()
        folder = Path(pattern.anchor or ".")
        found = [
            path
            for path in folder.glob(str(pattern.relative_to(pattern.anchor)))
            if path.suffix.lower() in SUFFIXES
        ]
    else:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise UserError(f"The folder of depth maps '{source}' does not exist.")
        found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    found = sorted(
        (path for path in found if not path.name.startswith(".")),
        key=lambda path: images.natural_key(str(path)),
    )
    if not found:
        raise UserError(f"'{source}' holds no depth maps ({', '.join(SUFFIXES)}).")
    by_name = {path.name.lower(): path for path in found}
    candidates = [ending + suffix for suffix in SUFFIXES for ending in _ENDINGS]
    matched = [
        next((by_name[key] for end in candidates if (key := (name + end).lower()) in by_name), None)
        for name in names
    ]
    if not any(matched) and len(found) == len(names):
        return list(found)
    return matched


def read_depth_folder(
    source: str | Path, names: Sequence[str], *, scale: float | None = None
) -> DepthFolder:
    """Returns the depth of every frame from a folder or glob; see `find_depth_files`.

    Files of Depth Anything hold inverse depth, known by `depthanything` in the name of the file
    or its folder; Depth Pro, `depthmetric` and PNG are metric. `depth.json` in the folder
    overrides: {"scale": values per unit of PNG, "inverse": bool, "metric": bool}. Frames without
    a focal get the median of the others. Raises UserError as `read_depth`, and if the maps
    differ in size.
    """
    paths = find_depth_files(source, names)
    maps = [read_depth(path, scale=scale) for path in paths]
    for path, item in zip(paths, maps):
        if item.depth.shape != maps[0].depth.shape:
            raise UserError(
                f"Depth maps differ in size: '{path.name}' is {item.depth.shape} (height, width), "
                f"'{paths[0].name}' {maps[0].depth.shape}."
            )
    label = f"{paths[0].parent.name}/{paths[0].name}".lower()
    sidecar = read_sidecar(paths[0].parent)
    inverse = bool(sidecar.get("inverse", _DEPTH_ANYTHING in label))
    known = [item.focal for item in maps if item.focal is not None]
    focal = None
    if known:
        middle = float(np.median(known))
        focal = np.array([item.focal or middle for item in maps], np.float32)
    named_metric = _DEPTH_PRO in label or _METRIC in label
    metric = bool(sidecar.get("metric", named_metric or paths[0].suffix.lower() == ".png"))
    depth = np.stack([item.depth for item in maps])
    return DepthFolder(depth, focal, inverse, metric, tuple(paths))


def read_sidecar(folder: Path) -> dict[str, float | bool]:
    """Returns the settings of a folder of depth maps (`depth.json`), {} if there are none.

    Raises UserError for anything but "scale" (positive), "inverse" and "metric" (true or false).
    """
    path = folder / SIDECAR
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is not valid JSON ({error}).") from error
    kinds: dict[str, type | tuple[type, ...]]
    kinds = {"scale": (int, float), "inverse": bool, "metric": bool}
    valid = isinstance(settings, dict) and all(
        key in kinds and isinstance(value, kinds[key]) for key, value in settings.items()
    )
    if not valid or not settings.get("scale", 1) > 0:
        raise UserError(
            f'\'{path}\' must be like {{"scale": 5000, "inverse": false, "metric": true}} '
            f"(all optional), got {settings}."
        )
    return settings


def _read_npz(path: Path) -> tuple[np.ndarray, float | None]:
    with np.load(path, allow_pickle=False) as stored:
        key = "depth" if "depth" in stored else stored.files[0] if len(stored.files) == 1 else None
        if key is None:
            raise UserError(f"'{path}' has no array 'depth'; it holds {sorted(stored.files)}.")
        focal = None
        if "focallength_px" in stored:
            focal = float(np.ravel(stored["focallength_px"])[0])  # a 3x3 matrix starts with fx
            if not (np.isfinite(focal) and focal > 0):
                raise UserError(f"'{path}': focallength_px is {focal:g}; it must be positive.")
        return stored[key], focal


def _read_npy(path: Path) -> tuple[np.ndarray, None]:
    return np.load(path, allow_pickle=False), None


def _read_png(path: Path, scale: float | None) -> np.ndarray:
    return png16.decode(png16.read_png16(path), scale or DEFAULT_SCALE, missing=np.nan)


def _read_pfm(path: Path) -> tuple[np.ndarray, None]:
    values = pfm.read_pfm(path)
    if values.ndim == 3:
        raise UserError(f"'{path}' is a colour PFM; depth has one channel (Pf).")
    return values, None


def _read_exr(path: Path) -> tuple[np.ndarray, None]:
    return exr.read_exr(path), None


_READERS = {".npz": _read_npz, ".npy": _read_npy, ".pfm": _read_pfm, ".exr": _read_exr}
