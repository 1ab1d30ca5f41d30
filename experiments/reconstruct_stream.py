"""Real-time mode of `experiments.reconstruct`: frames from a file, pipe or camera, one by one.

Results are in the output folder as soon as a frame is done; at the end, or after Ctrl-C, the folder
becomes a complete result with report and point clouds.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from align3r_jax import config as config_lib
from align3r_jax.errors import UserError
from align3r_jax.io import stream, video
from align3r_jax.io.selection import RawFrame, Selection
from align3r_jax.structs import Frames, WorkingSize
from experiments import provenance, reconstruct_video, truth
from experiments.reconstruct_video import Models, Settings


@dataclasses.dataclass(frozen=True)
class Streaming:
    """keep_last: frames that stay in the folder, 0: all. drop: of a camera, frames that come while
    one is being worked on."""

    keep_last: int = 0
    drop: bool = True


def reconstruct_stream(
    source: str, output: Path, settings: Settings, models: Models, streaming: Streaming
) -> dict[str, Any]:
    """Writes the result folder of a stream, file, folder or glob; returns its summary.

    Raises UserError for sources and settings that cannot be worked with.
    """
    from align3r_jax.feedforward import engines, live, run
    from align3r_jax.io.live_folder import LiveFolder
    from align3r_jax.priors import sources
    from align3r_jax.viewer import report

    config = settings.config
    limits: list[str] = []
    name, prior_of = run.prior_maker(config, models.model, models.prior, limits.append)
    facts = {
        "input": source,
        "plan": {"mode": "feedforward"},
        "prior": name,
        "solver": "none",
        "weights": reconstruct_video.named(models.model),
        "prior_weights": reconstruct_video.named(models.prior),
        "flow_weights": reconstruct_video.named(models.flow),
        "settings": config_lib.to_dict(config),
        **provenance.of_this_process(),
    }
    said: dict[str, Any] = {}

    def open_engine(size: WorkingSize) -> engines.Engine:
        # Sources look at the size of the frames alone before the first field is asked for.
        blank = Frames(np.zeros((1, *size.working, 3), np.uint8), np.zeros(1), size, ("0",))
        flow = sources.flow_source(config.flow, blank, models.flow, limits.append)
        engine = engines.make(config, model=models.model, source=flow, size=size)
        said.update(predictor=engine.name, flow="none" if flow is None else flow.name)
        return engine

    def open_folder(size: WorkingSize) -> LiveFolder:
        return LiveFolder(
            output,
            size,
            facts | said,
            keep_last=streaming.keep_last,
            overwrite=settings.overwrite,
        )

    bar = tqdm(unit="frame", desc="real time")

    def tell(speed: live.Speed, result: Any) -> None:
        if speed.latency:
            bar.set_postfix_str(
                f"{speed.frames_per_second:.1f}/s, anchor {int(result.anchor)}"
                + (f", {speed.dropped} dropped" if speed.dropped else "")
            )
        bar.update()

    reading = reconstruct_video.reading(settings, models)
    done = live.stream(
        open_source(source, settings.reading, streaming.drop),
        size=reading["size"],
        crop=settings.reading.crop,
        open_engine=open_engine,
        prior_of=prior_of,
        open_folder=open_folder,
        keep_originals=not re.fullmatch(r"plane|none|files:.*", name, re.DOTALL),
        tell=tell,
    )
    bar.close()
    folder = done.folder
    if folder is None or folder.count < 2:
        if folder is not None:
            shutil.rmtree(folder.path)
        raise UserError(
            f"{0 if folder is None else folder.count} frames came from {source}; at least 2 are "
            "needed to find cameras and depth."
        )
    run.note_lost(done.lost, done.speed.frames, limits.append)
    scene = folder.scene()
    frames = Frames(scene.colours, scene.times, scene.size, scene.names)
    found = truth.load(settings.truth, source, frames)
    summary = facts | said | {
        "frames": frames.num_frames,
        "working_size": list(frames.images.shape[1:3]),
        "original_size": list(scene.size.original),
        "anchors": done.anchors,
        "real_time": done.speed.facts(),
        "limits": limits,
        "stages": {},
        "losses": {},
    }  # fmt: skip
    if found is not None:
        summary["errors"] = truth.errors(scene, found)
    print(done.speed.sentence())
    folder.finish(
        summary,
        report.write_report,
        true_world_from_cam=None if found is None else found.world_from_cam,
    )
    return summary


def open_source(source: str, reading: reconstruct_video.Reading, drop: bool) -> Iterator[RawFrame]:
    """Yields the frames of the source that are wanted; only those of a pipe or camera are live."""
    taken = {
        "start": reading.start, "end": reading.end, "stride": reading.stride, "fps": reading.fps,
        "max_frames": reading.max_frames,
    }  # fmt: skip
    if stream.is_live(source):
        return Selection(**taken).check().pick(stream.open_stream(source, drop=drop))
    return video.each_frame(source, **taken)
