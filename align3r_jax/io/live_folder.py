"""A result folder that grows frame by frame while a stream runs.

The same files and names as `io.scene_folder`: depth, confidence, mask and picture of every frame,
a line of the trajectory and the intrinsics. Every file appears whole, so that a killed run leaves
what it had; `summary.json`, renewed every second, makes the folder a result that `load_scene`
reads. `finish` adds what needs all frames (points, pictures of depth, the report).
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from align3r_jax.io import atomic, preview, scene_folder
from align3r_jax.structs import Scene, WorkingSize

_RENEW_SECONDS = 1.0
_FRAME_FILES = {
    scene_folder.DEPTH: ".npy",
    scene_folder.CONFIDENCE: ".npy",
    scene_folder.MASK: ".png",
    scene_folder.RGB: ".png",
}


class LiveFolder:
    """Writes a stream's results. keep_last: frames that stay, older ones are removed; 0: all.

    Raises UserError if `path` may not be written or holds a result and `overwrite` is not set.
    """

    def __init__(
        self,
        path: str | Path,
        size: WorkingSize,
        facts: dict[str, Any],
        *,
        keep_last: int = 0,
        overwrite: bool = False,
        metric: bool = False,
    ):
        self.path = scene_folder.check_output(path, overwrite)
        self._size, self._facts, self._metric = size, dict(facts), metric
        self._keep_last = keep_last
        self.first = self.count = 0  # frames [first, count) are in the folder
        kept = keep_last or None
        self._names: deque[str] = deque(maxlen=kept)
        self._rows: deque[tuple[float, np.ndarray, np.ndarray]] = deque(maxlen=kept)
        self._quaternion = np.array([0.0, 0.0, 0.0, 1.0])
        self._renewed = -np.inf
        with atomic.told_to_user(self.path):
            if self.path.exists():
                shutil.rmtree(self.path)
            for folder in _FRAME_FILES:
                (self.path / folder).mkdir(parents=True)

    def add(
        self,
        *,
        name: str,
        seconds: float,
        image: np.ndarray,
        depth: np.ndarray,
        confidence: np.ndarray,
        dynamic_mask: np.ndarray,
        world_from_cam: np.ndarray,
        intrinsics: np.ndarray,
    ) -> None:
        """Writes one frame: (H, W, 3) uint8, (H, W) twice, (H, W) bool, (4, 4), (3, 3).

        name: unique. seconds: since the first frame. Raises UserError if the disk is full.
        """
        index = self.count
        contents = (
            (scene_folder.DEPTH, _npy(depth)),
            (scene_folder.CONFIDENCE, _npy(confidence)),
            (scene_folder.MASK, preview.encode_png(dynamic_mask.astype(np.uint8) * 255)),
            (scene_folder.RGB, preview.encode_png(image)),
        )
        with atomic.told_to_user(self.path):
            for folder, content in contents:
                atomic.replace_file(self._file(folder, index), content)
            self._append(seconds, world_from_cam, intrinsics)
            self._names.append(name)
            self._rows.append((seconds, world_from_cam, intrinsics))
            self.count += 1
            while self._keep_last and self.count - self.first > self._keep_last:
                for folder in _FRAME_FILES:
                    self._file(folder, self.first).unlink(missing_ok=True)
                self.first += 1
            if time.monotonic() - self._renewed > _RENEW_SECONDS:
                self._write_summary()
                self._renewed = time.monotonic()

    def finish(
        self, summary: dict[str, Any], report: Callable[[Path], None] | None = None, **extras: Any
    ) -> Scene:
        """Replaces the folder by a complete result and returns its scene.

        Frames are numbered from 0 again if older ones were removed. summary, extras: as of
        `scene_folder.save_scene`. Raises UserError if it cannot be written; then what was written
        before stays.
        """
        self._write_summary()
        scene = self.scene()
        scene_folder.save_scene(scene, self.path, summary, overwrite=True, finish=report, **extras)
        return scene

    def scene(self) -> Scene:
        """Returns the frames that are in the folder."""
        numbers = range(self.first, self.count)

        def stack(folder: str) -> np.ndarray:
            return np.stack([self._read(folder, index) for index in numbers])

        seconds, poses, intrinsics = zip(*self._rows)
        return Scene(
            depth=stack(scene_folder.DEPTH),
            world_from_cam=np.stack(poses).astype(np.float32),
            intrinsics=np.stack(intrinsics).astype(np.float32),
            confidence=stack(scene_folder.CONFIDENCE),
            dynamic_mask=stack(scene_folder.MASK) > 127,
            colours=stack(scene_folder.RGB),
            times=np.array(seconds, np.float64),
            pair_losses=np.zeros(0, np.float32),
            trace={},
            size=self._size,
            names=tuple(self._names),
            metric=self._metric,
        )

    def _file(self, folder: str, index: int) -> Path:
        return self.path / scene_folder.frame_file(folder, index, _FRAME_FILES[folder])

    def _read(self, folder: str, index: int) -> np.ndarray:
        if _FRAME_FILES[folder] == ".npy":
            return np.load(self._file(folder, index))
        return scene_folder.read_image(self._file(folder, index), rgb=folder == scene_folder.RGB)

    def _append(self, seconds: float, world_from_cam: np.ndarray, intrinsics: np.ndarray) -> None:
        pose = np.asarray(world_from_cam, np.float64)
        quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat()
        if quaternion @ self._quaternion < 0:
            quaternion = -quaternion
        self._quaternion = quaternion
        numbers = " ".join(f"{value:.9g}" for value in (*pose[:3, 3], *quaternion))
        lines = (
            (scene_folder.TRAJECTORY, f"{seconds:.6f} {numbers}"),
            (
                scene_folder.INTRINSICS,
                " ".join(f"{value:.6f}" for value in np.asarray(intrinsics).ravel()),
            ),
        )
        for name, line in lines:
            with (self.path / name).open("a", encoding="ascii") as file:
                file.write(line + "\n")

    def _write_summary(self) -> None:
        section = {
            "num_frames": self.count - self.first,
            "first_frame": self.first,
            "metric": self._metric,
            "size": vars(self._size),
            "names": list(self._names),
            "pair_losses": [],
            "trace": {},
        }
        content = {"format": scene_folder.FORMAT} | self._facts | {"scene": section}
        text = json.dumps(content, indent=1)
        atomic.replace_file(self.path / scene_folder.SUMMARY, text.encode())


def _npy(values: np.ndarray) -> bytes:
    memory = io.BytesIO()
    np.save(memory, np.asarray(values, np.float32))
    return memory.getvalue()
