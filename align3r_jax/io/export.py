"""A finished result in the formats of other programs (`export_formats.FORMATS`).

Every format becomes one folder, which appears when all of them are complete and holds an
`export.json` that says what is in it. docs/outputs.md describes the files.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from align3r_jax.errors import UserError
from align3r_jax.io import atomic, export_frames, scene_folder
from align3r_jax.io.export_formats import FORMATS, RESOLUTION, SPLIT, ExportOptions, Job

FORMAT = "align3r_jax export, version 1"
ABOUT = "export.json"
DEFAULT_FOLDER = "export"  # in the result


def export_result(
    result: str | Path,
    formats: Iterable[str],
    options: ExportOptions | None = None,
    *,
    output: str | Path | None = None,
    source: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Writes the formats and returns the folder of each, `output/FORMAT`.

    Args:
        result: folder that `scene_folder.save_scene` wrote.
        formats: names in `FORMATS`.
        options: resolution, split and number of points.
        output: default: `export` in the result.
        source: the video for the original resolution; default: the one that the result names.
        overwrite: replace earlier exports; never anything else.

    Raises:
        UserError: not a result; unknown formats; an output that exists; a video that is missing or
            another one; files that cannot be written. Nothing is left half-written.
    """
    names = list(dict.fromkeys(formats))
    for name in names:
        if name not in FORMATS:
            raise UserError(f"'{name}' is no format to export to; known are {', '.join(FORMATS)}.")
    result = Path(result)
    summary = scene_folder.load_summary(result)
    target = Path(output) if output is not None else result / DEFAULT_FOLDER
    paths = {name: (target / name).absolute() for name in names}
    for path in paths.values():
        _check_path(path, overwrite)
    options = options or ExportOptions()
    job = Job(scene_folder.load_scene(result), options, source or summary.get("input"))
    with contextlib.ExitStack() as stack:
        folders = {
            name: stack.enter_context(atomic.new_folder(path)) for name, path in paths.items()
        }
        _write(job, folders, result.resolve().name)
    return paths


def _write(job: Job, folders: Mapping[str, Path], result: str) -> None:
    splits = {
        name: FORMATS[name].split if job.options.split == "auto" else job.options.split
        for name in folders
    }
    by_frame = {name: writer for name in folders if (writer := FORMATS[name].frame)}
    if by_frame:
        for frame in export_frames.frames(job.scene, job.options.resolution, job.source):
            for name, writer in by_frame.items():
                writer(folders[name], job, splits[name], frame)
    for name, folder in folders.items():
        form = FORMATS[name]
        about: dict[str, Any] = {"format": FORMAT, "kind": name, "content": form.text}
        about |= {"result": result, "unit": "metre" if job.scene.metric else "arbitrary"}
        if RESOLUTION in form.uses:
            about["resolution"] = job.options.resolution
            about["image_size"] = list(job.image_size)
        if SPLIT in form.uses:
            about["split"] = splits[name]
        about |= form.whole(folder, job, splits[name])
        (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _check_path(path: Path, overwrite: bool) -> None:
    with atomic.told_to_user(path):
        if not path.exists():
            return
        try:
            earlier = json.loads((path / ABOUT).read_text(encoding="utf-8"))["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError):
            earlier = False
    if not earlier:
        raise UserError(
            f"{path} exists and is no earlier export; name another folder with --output."
        )
    if not overwrite:
        raise UserError(
            f"{path} exists; pass --overwrite to replace that export, or name another folder with "
            "--output."
        )
