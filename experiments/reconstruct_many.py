"""Many videos into one folder, by all devices of all processes that are given the same command.

Processes share DIR/.queue (`io.work_queue`) and nothing else: each device takes the longest clip
that nobody has, until none is left. What is finished stays finished whoever dies; clips of dead
processes go to the living ones, or to those that are started later, and continue at the stage that
was reached.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging

from align3r_jax import config as config_lib
from align3r_jax import plan
from align3r_jax.errors import UserError
from align3r_jax.io import scene_folder
from align3r_jax.io.work_queue import Lease, WorkQueue
from experiments import clip_sources, clips_report, devices, reconstruct_video
from experiments.clip_sources import Source
from experiments.reconstruct_video import Models, Settings

CLIP = "{clip}"  # in the name of a file or folder: that of the clip
QUEUE = ".queue"
_MAX_DEATHS = 4  # processes that died with a clip, before it is left alone


class Place(NamedTuple):
    """Devices that work on one clip together, and the networks on them."""

    device: jax.Device
    models: Models


@dataclasses.dataclass
class Run:
    """What all places of this process share.

    settings: of all clips, with "{clip}" where a file belongs to one. models: to tell clips by.
    """

    sources: Mapping[str, Source]
    output: Path
    settings: Settings
    queue: WorkQueue
    models: Models
    show_progress: bool
    allowance: int | None
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    outcomes: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    _fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)

    def fingerprint(self, name: str) -> str:
        """Of the settings, the networks and the files of a clip, by size and time."""
        if name not in self._fingerprints:
            settings = for_clip(self.settings, name)
            files = [self.sources[name].path, *_files_of(settings)]
            plain = dataclasses.asdict(settings)
            del plain["config"]["max_memory"]
            for how in ("cache_dir", "overwrite", "resume"):
                del plain[how]
            text = json.dumps([plain, clip_sources.stamps(files)], sort_keys=True)
            checksums = [
                network.checksum if network else ""
                for network in (self.models.model, self.models.prior, self.models.flow)
            ]
            digest = hashlib.sha256("\n".join([text, *checksums]).encode())
            self._fingerprints[name] = digest.hexdigest()
        return self._fingerprints[name]

    def finished(self, name: str) -> bool:
        """Whether a clip needs no work: its result is there, or it failed since we started."""
        if name in self.outcomes:
            return True
        outcome = self.queue.outcome(name)
        try:
            mine = self.fingerprint(name)
        except OSError:
            mine = ""  # the source is gone; whoever takes the clip will say so
        recent = outcome is not None and outcome.pop("recent")
        failed = outcome is not None and outcome["status"] == "failed"
        if outcome and failed and recent and outcome["fingerprint"] == mine:
            self.outcomes[name] = outcome
            return True
        found = self._result(name)
        if found is not None and found.get("clip", {}).get("fingerprint") == mine:
            told = outcome if outcome and not failed else {}
            if not told:  # its process may have died before it could tidy up
                with contextlib.suppress(OSError, UserError):
                    reconstruct_video.remove_partial(self.output / f"{name}.partial")
            self.outcomes[name] = {**_finished(found), **told}
            return True
        return False

    def _result(self, name: str) -> dict[str, Any] | None:
        folder = self.output / name
        if not (folder / scene_folder.SUMMARY).is_file():
            return None
        try:
            return scene_folder.load_summary(folder)
        except UserError:
            return None


def reconstruct_many(
    patterns: Sequence[str],
    output: Path,
    settings: Settings,
    device_count: str = "all",
    division: Sequence[int] = (0, 0),
) -> dict[str, dict[str, Any]]:
    """Writes OUTPUT/CLIP/ for every clip, clips.json and index.html; returns name -> outcome.

    device_count: of this process, as `devices.chosen` reads it. division: of the devices among the
    clips. Raises UserError for settings that can serve no clip; what goes wrong with one clip is in
    its outcome.
    """
    found = clip_sources.find(patterns, "videos")
    sources = {clip.name: clip for clip in found if clip.path.resolve() != output.resolve()}
    check_settings(settings, sources)
    chosen = devices.chosen(device_count)
    places = [Place(*found) for found in reconstruct_video.open_places(settings, chosen, division)]
    models = places[0].models
    reading = reconstruct_video.reading(settings, models)
    costs = {
        name: clip_sources.cost(source, reading, settings.config)
        for name, source in sources.items()
    }
    limit = settings.config.max_memory
    with WorkQueue(output / QUEUE) as queue:
        run = Run(
            sources, output, dataclasses.replace(settings, resume=True), queue, models,
            show_progress=len(places) == 1,
            allowance=plan.allowance_of(plan.parse_memory(limit) if limit else None, len(places)),
        )  # fmt: skip
        order = sorted(sources, key=lambda name: -costs[name])
        kept = sum(run.finished(name) for name in order)
        logging.info("%d clips, %d of them finished; %d places", len(order), kept, len(places))

        def stop() -> None:
            run.stop.set()
            queue.stop()

        def work(place: Place) -> Iterator[tuple[str, dict[str, Any]]]:
            while (lease := queue.take(order, run.finished)) is not None:
                outcome = one_clip(run, place, lease)
                if outcome is not None:
                    yield lease.name, outcome

        placed = [(place.device, place) for place in places]
        for name, outcome in devices.run(placed, work, stop):
            print(clips_report.line(name, outcome, len(run.outcomes), len(order)), flush=True)
            clips_report.write(output, sources, run.outcomes, queue.holders())
        clips_report.write(output, sources, run.outcomes, queue.holders())
    return {name: run.outcomes[name] for name in sources}


def one_clip(run: Run, place: Place, lease: Lease) -> dict[str, Any] | None:
    """Returns and publishes the outcome of a clip that this process holds; None if it lost it."""
    name, started = lease.name, time.perf_counter()
    outcome: dict[str, Any] = {"status": "failed", "frames": None}
    try:
        outcome["fingerprint"] = run.fingerprint(name)
        if lease.attempts > _MAX_DEATHS:
            raise UserError(
                f"{lease.attempts} processes died while they worked on it (out of memory?); "
                "try a smaller --size, --max_frames or --max_memory."
            )
        summary = _reconstruct(run, place, lease)
        outcome |= _finished(summary)
    except (UserError, OSError) as error:
        outcome["error"] = str(error)
    # One broken clip must not take the others with it: a defect of ours is told, not hidden.
    except Exception as error:
        logging.exception("%s", name)
        outcome["error"] = f"{type(error).__name__}: {error}"
        outcome["traceback"] = traceback.format_exc()
    except BaseException:
        lease.release()
        if lease.lost and not run.stop.is_set():
            return None
        raise
    outcome["seconds"] = round(time.perf_counter() - started, 2)
    outcome["device"] = f"{place.device.platform}:{place.device.id}"
    outcome["process"] = jax.process_index()
    outcome.setdefault("fingerprint", "")
    if not lease.finish(outcome):
        return None
    run.outcomes[name] = outcome
    return outcome


def _reconstruct(run: Run, place: Place, lease: Lease) -> dict[str, Any]:
    name = lease.name
    source, output = str(run.sources[name].path), run.output / name
    settings = for_clip(run.settings, name)
    if run._result(name) is not None and not settings.overwrite:
        raise UserError(
            f"{output} holds a result of other settings or of another video; pass --overwrite to "
            "replace it, or name another --output."
        )
    scene_folder.check_output(output, overwrite=settings.overwrite)
    if lease.attempts:
        _sweep(output)
    models = reconstruct_video.models_for(
        place.models, settings, reconstruct_video.focal_of_pictures(source)
    )
    return reconstruct_video.reconstruct_video(
        source,
        output,
        settings,
        models,
        facts={"clip": {"name": name, "fingerprint": run.fingerprint(name)}},
        show_progress=run.show_progress,
        stop=lambda: run.stop.is_set() or lease.lost,
        allowance=run.allowance,
    )


def _sweep(output: Path) -> None:
    """Removes what a process left that died while it wrote the result (`io.atomic`)."""
    ours = re.compile(re.escape(f".{output.name}.") + r"[0-9a-f]{8}\.partial")
    for path in output.parent.iterdir():
        if ours.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _finished(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "status": "finished",
        "frames": summary["frames"],
        "seconds": round(sum(record["seconds"] for record in summary["stages"]), 2),
        "fingerprint": summary["clip"]["fingerprint"],
    }


def for_clip(settings: Settings, name: str) -> Settings:
    """Returns the settings with the name of a clip in the names of its files."""

    def named(text: str | None) -> str | None:
        return None if text is None else text.replace(CLIP, name)

    config = settings.config
    flow = dataclasses.replace(config.flow, source=named(config.flow.source))
    config = dataclasses.replace(config, prior=named(config.prior), flow=flow)
    files = {key: named(getattr(settings, key)) for key in ("cameras", "masks", "truth")}
    return dataclasses.replace(settings, config=config, **files)


def check_settings(settings: Settings, sources: Mapping[str, Source]) -> None:
    """Raises UserError for files that belong to one clip but are named without "{clip}"."""
    config: config_lib.ReconstructConfig = settings.config
    of_one_clip = {
        "prior": config.prior if config.prior.startswith("files:") else None,
        "flow": config.flow.source if config.flow.source.startswith("files:") else None,
        "cameras": settings.cameras,
        "masks": settings.masks,
        "truth": settings.truth,
    }
    for flag, value in of_one_clip.items():
        if value is not None and CLIP not in value and len(sources) > 1:
            raise UserError(
                f"--{flag}={value} would be used for each of {len(sources)} videos; write {CLIP} "
                f"where the name of a clip belongs, such as {value.rstrip('/')}/{CLIP}. Clips are "
                f"{', '.join(list(sources)[:3])}{', ...' if len(sources) > 3 else ''}."
            )


def _files_of(settings: Settings) -> list[Path]:
    """The user's files that belong to a clip, as far as they exist."""
    config = settings.config
    texts = [settings.cameras, settings.masks, settings.truth]
    texts += [
        text.removeprefix("files:")
        for text in (config.prior, config.flow.source)
        if text.startswith("files:")
    ]
    paths = [Path(text).expanduser() for text in texts if text]
    return [path for path in paths if path.exists()]
