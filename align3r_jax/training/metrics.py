"""What a run writes down: `metrics.jsonl` (the record), `metrics.csv`, TensorBoard, pictures.

One line per step that was logged, in order and once each: a resumed run removes the lines behind
the checkpoint it goes on from, because it writes them again.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from align3r_jax.io import atomic, preview
from align3r_jax.structs import Array

RECORD, TABLE = "metrics.jsonl", "metrics.csv"
Value = float | int | str


class Means:
    """Means of the details of steps since the last `take`, without waiting for the devices.

    `to_json` and `from_json` carry an unfinished interval over to the run that resumes, to the bit.
    """

    def __init__(self) -> None:
        self._waiting: list[dict[str, Array]] = []
        self._sums: dict[str, float] = {}
        self._finite: dict[str, int] = {}
        self._count = 0

    def add(self, details: dict[str, Array]) -> None:
        """Adds the scalars of one step."""
        self._waiting.append(details)

    def _collect(self) -> None:
        for details in jax.device_get(self._waiting):
            for name, value in details.items():
                number = float(np.float64(value))
                if math.isfinite(number):
                    self._sums[name] = self._sums.get(name, 0.0) + number
                    self._finite[name] = self._finite.get(name, 0) + 1
            self._count += 1
        self._waiting = []

    def broken(self) -> int:
        """Returns how many steps had a loss that was not finite. Waits for the steps."""
        self._collect()
        return self._count - self._finite.get("loss", 0)

    def take(self) -> tuple[dict[str, float], int]:
        """Returns (means over the finite values, steps whose loss was not finite); starts anew.

        Waits for the steps. A detail without any finite value is left out.
        """
        broken = self.broken()
        means = {name: total / self._finite[name] for name, total in self._sums.items()}
        self._sums, self._finite, self._count = {}, {}, 0
        return means, broken

    def to_json(self) -> dict[str, Any]:
        """Returns the state as JSON types. Waits for the steps."""
        self._collect()
        return {"sums": dict(self._sums), "finite": dict(self._finite), "count": self._count}

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Means:
        """Returns what `to_json` described; empty for None."""
        means = cls()
        if values:
            means._sums = dict(values["sums"])
            means._finite = dict(values["finite"])
            means._count = int(values["count"])
        return means


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl`, without one that a killed writer left unfinished."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


class MetricsLog:
    """Writes metrics and pictures into the work folder. Only one process may have one."""

    def __init__(self, folder: Path, first_step: int, tensorboard: bool = True):
        """Lines of `folder` behind `first_step`, where the run goes on, are removed.

        tensorboard: event files in `folder/tensorboard`, if tensorboardX is installed.
        """
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read(folder / RECORD) if line.get("step", 0) <= first_step]
        atomic.replace_file(folder / RECORD, "".join(map(_json_line, kept)).encode())
        self._columns: list[str] = []
        self._write_table(kept)
        self._board = _event_writer(folder / "tensorboard", first_step) if tensorboard else None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Appends one line. Names with "/" are grouped by what stands before it in TensorBoard."""
        line = {"step": step, **{name: _rounded(value) for name, value in values.items()}}
        # One call, so that a kill leaves a whole line or, at worst, an unfinished last one.
        with (self._folder / RECORD).open("a", encoding="utf-8") as file:
            file.write(_json_line(line))
        if set(line) <= set(self._columns):
            with (self._folder / TABLE).open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(line)
        else:
            self._write_table(read(self._folder / RECORD))
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    tag = name if "/" in name else f"train/{name}"
                    self._board.add_scalar(tag, value, step)

    def picture(self, step: int, name: str, rgb: np.ndarray) -> None:
        """Writes (H, W, 3) uint8 as `images/NAME_STEP.png` and to TensorBoard."""
        path = self._folder / "images" / f"{name}_{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        atomic.replace_file(path, preview.encode_png(rgb))
        if self._board is not None:
            self._board.add_image(f"images/{name}", rgb, step, dataformats="HWC")

    def _write_table(self, lines: list[dict[str, Any]]) -> None:
        names = [name for line in lines for name in line]
        self._columns = list(dict.fromkeys(["step", *names]))
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        atomic.replace_file(self._folder / TABLE, text.getvalue().encode())


def _rounded(value: Value) -> Value:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _json_line(line: Mapping[str, Any]) -> str:
    # JSON has no NaN.
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v
              for k, v in line.items()}  # fmt: skip
    return json.dumps(finite) + "\n"


def _event_writer(folder: Path, first_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    # Events behind the checkpoint are hidden: they come again.
    return SummaryWriter(str(folder), purge_step=first_step + 1)
