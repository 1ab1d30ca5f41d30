"""Waymo Open Dataset (perception, version 1) for training: raw TFRecords or the processed folders.

Raw: `training/segment-NAME.tfrecord` (or the files at the root), 5 cameras at 10 Hz, 5 lidars.
Processed (DUSt3R's and MonST3R's preparation): folders `SEQ.tfrecord/00000_1.{jpg,exr,npz}`, frame
and camera, with `intrinsics`, `cam2world` and `distortion`, and `waymo_pairs_video.npz`.

Depth is lidar, so a few pixels in a hundred have it. A raw frame takes 0.3 seconds of CPU to load:
for more than a look, prepare records first. A scene is one camera of one sequence; its
pairs are those of the file, else what that file holds: strides 1 to 9, all starts.

By default the lens is undone, in both layouts, and a raw camera stands where the car was when the
picture was taken, which is what the pixels of the lidar points belong to.
# parity: the published preparation stores the lens and never applies it, and takes the pose of the
# frame. It does not say which returns of the lidar it took; here it is the first of each beam.
The principal points of the set are taken as pixels whose centres lie at integers; its
documentation does not tell, and half a pixel of 1920 is at stake.
"""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import exr, images, train_crop
from data.readers import tfrecord, training_frames, waymo_depth, waymo_frame
from data.readers.training import (
    SkippedScene,
    TrainingFrame,
    TrainingOptions,
    TrainingReader,
    TrainingScene,
)

PAIRS_FILE = "waymo_pairs_video.npz"
CAMERAS = (1, 2, 3, 4, 5)  # front, front left, front right, side left, side right
STRIDES = 9
_SUFFIX = ".tfrecord"
_SPLITS = {"train": "training", "test": "validation"}
_LAYOUT = (
    "training/segment-NAME.tfrecord files of version 1 (not the parquet files of version 2), or "
    f"folders SEQ.tfrecord/00000_1.jpg with {PAIRS_FILE}"
)


def scenes(root: Path, options: TrainingOptions) -> tuple[list[TrainingScene], list[SkippedScene]]:
    """Returns a scene per camera and sequence, of either layout.

    Raises UserError for a root with both, a root without the split, a prior of raw files.
    """
    base = root / _SPLITS[options.split]
    if not base.is_dir():
        base = root
    found = [path for path in sorted(base.iterdir()) if path.name.endswith(_SUFFIX)]
    folders = [path for path in found if path.is_dir()]
    if not found:
        return [], []
    if base == root and options.split == "test":
        raise UserError(
            f"'{root}' has no folder '{_SPLITS['test']}', so nothing is held out: split='test' "
            "needs the validation sequences in a folder of that name."
        )
    if folders and len(folders) < len(found):
        raise UserError(
            f"'{base}' holds both raw files and processed folders; give a root with one of them."
        )
    return _processed(base, folders, options) if folders else _raw(found, options)


# Raw


def _raw(
    files: list[Path], options: TrainingOptions
) -> tuple[list[TrainingScene], list[SkippedScene]]:
    if options.prior is not None:
        raise UserError(
            f"The prior '{options.prior}' lies beside pictures, and raw Waymo files hold theirs "
            "inside: write them out first (experiments.prepare_data --format=processed) and "
            "estimate priors there, or use prior=None."
        )
    kept: list[TrainingScene] = []
    skipped: list[SkippedScene] = []
    for path in files:
        try:
            records = tfrecord.index(path)
            if not records:
                raise UserError(f"'{path}' holds no frames.")
        except UserError as error:
            skipped.append(SkippedScene(path.name, str(error)))
            continue
        for camera in CAMERAS:
            names = tuple(f"{index:05d}_{camera}" for index in range(len(records)))
            load = functools.partial(_load_raw, path, records, camera, options.parity)
            kept.append(
                TrainingScene("waymo", _name(path, camera), names, load, _video_pairs(len(names)))
            )
    return kept, skipped


def _load_raw(
    path: Path, records: tuple[tfrecord.Record, ...], camera: int, parity: bool, index: int
) -> TrainingFrame:
    data = tfrecord.read(path, records[index])
    source = f"{path}, frame {index}, camera {camera}"
    try:
        frame = waymo_frame.parse(data, camera)
        with Image.open(io.BytesIO(frame.cameras[camera].image)) as picture:
            image = np.array(picture.convert("RGB"))
    except (ValueError, IndexError, OSError, SyntaxError) as error:
        raise UserError(
            f"'{source}' cannot be read as a frame of the Waymo perception data set ({error})."
        ) from error
    if image.shape[:2] != frame.cameras[camera].size:
        raise UserError(
            f"'{source}': the picture is {image.shape[:2]} (height, width), its calibration is for "
            f"{frame.cameras[camera].size}."
        )
    view, world_from_cam = waymo_depth.view(image, frame, camera, parity=parity)
    return TrainingFrame(view.image, view.maps["depth"], view.intrinsics, world_from_cam).check(
        source
    )


# Processed


class _Camera(NamedTuple):
    intrinsics: np.ndarray
    world_from_cam: np.ndarray
    lens: np.ndarray


def _processed(
    base: Path, folders: list[Path], options: TrainingOptions
) -> tuple[list[TrainingScene], list[SkippedScene]]:
    pairs = _pair_file(base / PAIRS_FILE) if (base / PAIRS_FILE).is_file() else None
    kept: list[TrainingScene] = []
    skipped: list[SkippedScene] = []
    for folder in folders:
        ids: dict[int, list[str]] = {}
        there = {item.name for item in folder.iterdir()}
        for picture in sorted(name for name in there if name.endswith(".jpg")):
            camera = picture.removesuffix(".jpg").rpartition("_")[2]
            ids.setdefault(int(camera) if camera.isdecimal() else 0, []).append(picture[:-4])
        if not ids:
            skipped.append(SkippedScene(folder.name, f"'{folder}' holds no pictures."))
        for camera, names in sorted(ids.items()):
            names.sort(key=images.natural_key)
            try:
                chosen = _video_pairs(len(names)) if pairs is None else pairs.of(folder, names)
                kept.append(_processed_scene(folder, camera, names, there, chosen, options))
            except UserError as error:
                skipped.append(SkippedScene(_name(folder, camera), str(error)))
    return kept, skipped


def _processed_scene(
    folder: Path,
    camera: int,
    names: list[str],
    there: set[str],
    pairs: np.ndarray,
    options: TrainingOptions,
) -> TrainingScene:
    missing = [name + end for name in names for end in (".exr", ".npz") if name + end not in there]
    if missing or camera == 0:
        raise UserError(
            f"{len(missing)} files of the frames in '{folder}' are missing, the first is "
            f"'{missing[0]}'." if missing else f"'{folder / names[0]}.jpg' names no camera "
            "(FRAME_CAMERA.jpg)."
        )  # fmt: skip
    training_frames.check_priors([folder / f"{name}.jpg" for name in names], options.prior)
    load = functools.partial(_load_processed, folder, tuple(names), options.prior, options.parity)
    return TrainingScene("waymo", _name(folder, camera), tuple(names), load, pairs)


def _load_processed(
    folder: Path, names: tuple[str, ...], prior: str | None, parity: bool, index: int
) -> TrainingFrame:
    picture = folder / f"{names[index]}.jpg"
    image = images.load_image(picture)
    shape = (image.shape[0], image.shape[1])
    camera = _read_camera(picture.with_suffix(".npz"))
    depth = training_frames.usable(exr.read_exr(picture.with_suffix(".exr")), np.inf)
    if depth.shape != shape:
        raise UserError(
            f"'{picture}' is {shape} (height, width), '{picture.stem}.exr' {depth.shape}: both "
            "must be of one size."
        )
    prior_depth = prior_focal = None
    if prior is not None:
        fx = float(camera.intrinsics[0, 0])
        prior_depth, prior_focal = training_frames.read_prior(picture, prior, shape, fx)
    if not parity and camera.lens.any():
        rows, columns = np.nonzero(depth)
        view = train_crop.View(image, {}, camera.intrinsics)
        if prior_depth is not None:
            prior_depth = waymo_depth.without_lens(prior_depth, view.intrinsics, camera.lens)
        view = waymo_depth.sparse_view(
            view, np.stack([columns, rows], -1).astype(float), depth[rows, columns], camera.lens
        )
        image, depth = view.image, view.maps["depth"]
    return TrainingFrame(
        image, depth, camera.intrinsics, camera.world_from_cam, prior_depth, prior_focal
    ).check(str(picture))


def _read_camera(path: Path) -> _Camera:
    try:
        with np.load(path, allow_pickle=False) as stored:
            lens = np.zeros(5)
            if "distortion" in stored:
                given = np.asarray(stored["distortion"], np.float64).ravel()
                lens[: len(given)] = given
            return _Camera(
                np.asarray(stored["intrinsics"], np.float64).reshape(3, 3),
                np.asarray(stored["cam2world"], np.float64).reshape(4, 4),
                lens,
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"'{path}' holds no camera that can be read ({error}).") from error


class _PairFile(NamedTuple):
    """scenes, frames: names. pairs: (P, 3) indices of a scene and two of its frames."""

    path: Path
    scenes: dict[str, int]
    frames: np.ndarray
    pairs: np.ndarray

    def of(self, folder: Path, names: list[str]) -> np.ndarray:
        """Returns the (P, 2) pairs within `names` of a folder. Raises UserError."""
        if folder.name not in self.scenes:
            raise UserError(f"'{self.path}' does not know the sequence.")
        rows = self.pairs[self.pairs[:, 0] == self.scenes[folder.name], 1:]
        position = {name: k for k, name in enumerate(names)}
        index = np.array([position.get(str(name), -1) for name in self.frames], np.int64)
        first, second = index[rows].T
        if ((first < 0) != (second < 0)).any():
            lost = int(np.argmax((first < 0) != (second < 0)))
            given = " and ".join(f"'{self.frames[frame]}'" for frame in rows[lost])
            raise UserError(
                f"'{self.path}' pairs the frames {given}: one is missing in '{folder}', or they "
                "are of two cameras."
            )
        chosen = np.stack([first, second], -1)[first >= 0]
        if not len(chosen):
            raise UserError(f"'{self.path}' holds no pairs of these frames.")
        return chosen


def _pair_file(path: Path) -> _PairFile:
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = [str(name) for name in stored["scenes"]]
            file = _PairFile(
                path, {name: k for k, name in enumerate(names)}, np.asarray(stored["frames"]),
                np.asarray(stored["pairs"], np.int64).reshape(-1, 3),
            )  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"'{path}' holds no pairs that can be read ({error}).") from error
    limits = (len(names), len(file.frames), len(file.frames))
    if not ((file.pairs >= 0) & (file.pairs < limits)).all():
        raise UserError(f"'{path}': a pair points behind the lists of scenes and frames.")
    return file


def _video_pairs(count: int) -> np.ndarray:
    """(P, 2): strides 1 to 9, all starts."""
    pairs = [(start, start + s) for s in range(1, STRIDES + 1) for start in range(count - s)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _name(path: Path, camera: int) -> str:
    return f"{path.name.removesuffix(_SUFFIX)}_camera{camera}"


TRAINING = TrainingReader(name="waymo", layout=_LAYOUT, scenes=scenes)
