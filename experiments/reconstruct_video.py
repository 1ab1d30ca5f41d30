"""One video from its file to its result folder: what `experiments.reconstruct` does, without flags.

Models are opened once (`open_models`) and may serve many videos.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from align3r_jax import config as config_lib
from align3r_jax import plan, stages
from align3r_jax.errors import UserError
from align3r_jax.io import user_folder
from align3r_jax.structs import Frames
from experiments import provenance, user_files

FLOW_SIZE = 320  # long side in pixels where no network prescribes one


@dataclasses.dataclass(frozen=True)
class Reading:
    """Which frames of a video, as `io.video.read_frames` takes them; size 0: the network's own."""

    start: int = 0
    end: int | None = None
    stride: int = 1
    fps: float | None = None
    max_frames: int | None = None
    size: int = 0
    crop: bool = True


@dataclasses.dataclass(frozen=True)
class Settings:
    """How videos are worked on.

    weights: of the pairwise network, None: none. cameras, masks: files of the user; `soft` cameras
    are only drawn to. truth: of a procedural video, None: the one beside it. cache_dir: of depth
    priors, None: the user's. overwrite, resume: as the flags.
    """

    config: config_lib.ReconstructConfig
    weights: str | None = None
    reading: Reading = Reading()
    cameras: str | None = None
    masks: str | None = None
    camera_use: str = "all"
    soft: user_files.Deviations | None = None
    truth: str | None = None
    cache_dir: str | None = None
    overwrite: bool = False
    resume: bool = False


@dataclasses.dataclass(frozen=True)
class Models:
    """The networks of a run, None where no network is used.

    model: pairwise. prior: depth, which may be told a focal with each video. flow: optical flow.
    """

    model: Any = None
    prior: Any = None
    flow: Any = None


def open_models(
    settings: Settings, focal: float | None = None, division: Sequence[int] = (0, 0)
) -> Models:
    """Returns the networks that the settings name; heavy modules are imported here.

    focal: of the pictures in pixels, if known. division: see `devices.Division`. Raises UserError.
    """
    import jax

    ((_, models),) = open_places(settings, jax.local_devices(), division, focal, 1)
    return models


def open_places(
    settings: Settings,
    available: Sequence[Any],
    division: Sequence[int] = (0, 0),
    focal: float | None = None,
    groups: int | None = None,
) -> list[tuple[Any, Models]]:
    """Returns (first device, networks) of groups of devices that work on a clip each.

    groups: at most so many. Others as `open_models`. Raises UserError.
    """
    import align3r_jax
    from align3r_jax.priors import sources
    from experiments import devices

    config = settings.config
    if config.max_memory:
        plan.parse_memory(config.max_memory)
    prior = sources.open_prior(config, **({} if focal is None else {"focal": focal}))
    flow = sources.open_flow(config.flow)
    weights, divided = settings.weights, devices.Division(*division)
    if weights is None:
        if max(divided) > 1:
            raise UserError(
                "--devices_per_clip and --fsdp divide the work of a pairwise network; give "
                "--weights, or leave them out."
            )
        alone = [(device, None) for device in available[:groups]]
    else:
        alone = devices.open_divided(
            lambda place: align3r_jax.load(weights, sharding=place), available, divided, groups
        )
    return [
        (device, Models(model, prior, devices.placed(flow, device) if len(alone) > 1 else flow))
        for device, model in alone
    ]


def models_for(models: Models, settings: Settings, focal: float | None) -> Models:
    """Returns the networks for one of many videos, whose pictures tell a focal or do not."""
    from align3r_jax.priors import sources

    if models.prior is None:
        return models
    told = {} if focal is None else {"focal": focal}
    return dataclasses.replace(models, prior=sources.open_prior(settings.config, **told))


def reconstruct_video(
    source: str,
    output: Path,
    settings: Settings,
    models: Models,
    *,
    facts: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
    allowance: int | None = None,
) -> dict[str, Any]:
    """Writes the result folder of one video; returns its summary.

    source: file, folder of pictures or glob. facts: more for the summary. stop, allowance: see
    `stages.Run`. Raises UserError.
    """
    # Heavy modules after the settings are known to be good: a typo should fail at once.
    from align3r_jax import pipeline
    from align3r_jax.io import scene_folder
    from align3r_jax.viewer import report
    from experiments import truth as truth_lib

    config = settings.config
    frames, originals = read_frames(source, settings, models)
    height, width = frames.images.shape[1:3]
    logging.info("%d frames of %dx%d from %s", frames.num_frames, width, height, source)
    user = user_files.load(
        frames, settings.cameras, settings.masks, use=settings.camera_use, soft=settings.soft
    )
    partial = output.with_name(output.name + ".partial")
    if partial.exists() and not settings.resume:
        remove_partial(partial)
    run = stages.Run(
        partial,
        fingerprint(frames, config, [models.model, models.prior, models.flow, user]),
        resume=settings.resume,
        show_progress=show_progress,
        stop=stop,
        allowance=allowance,
    )
    for sentence in user.notes:
        run.limit(sentence)
    scene = pipeline.reconstruct(
        frames,
        model=models.model,
        prior_model=models.prior,
        flow_source=models.flow,
        originals=originals,
        cameras=user.cameras,
        masks=user.masks,
        config=config,
        cache_dir=settings.cache_dir or str(user_folder.cache_folder("priors")),
        run=run,
    )
    truth = truth_lib.load(settings.truth, source, frames)
    summary = {
        "input": source,
        "frames": frames.num_frames,
        "working_size": [height, width],
        "original_size": list(frames.size.original),
        **run.facts,
        **user.facts,
        "weights": named(models.model),
        "prior_weights": named(models.prior),
        "flow_weights": named(models.flow),
        "limits": run.limits,
        "stages": run.records,
        "losses": {
            name: float(np.asarray(values)[-1])
            for name, values in scene.trace.items()
            if name != "lr" and len(values)
        },
        "settings": config_lib.to_dict(config),
        **provenance.of_this_process(),
        **(facts or {}),
    }
    if truth is not None:
        summary["errors"] = truth_lib.errors(scene, truth)
    prior = run.products["prior"]
    scene_folder.save_scene(
        scene,
        output,
        summary,
        overwrite=settings.overwrite,
        prior_depth=None if prior is None else np.asarray(prior.depth),
        flow=run.products["flow"],
        true_world_from_cam=None if truth is None else truth.world_from_cam,
        finish=report.write_report,
    )
    shutil.rmtree(partial, ignore_errors=True)
    return summary


def read_frames(
    source: str, settings: Settings, models: Models
) -> tuple[Frames, np.ndarray | None]:
    """Returns the frames at working size and, if a network looks at them, the original pictures."""
    from align3r_jax.io import video
    from align3r_jax.priors import sources

    prior_name, _ = sources.prior_source(
        settings.config, models.model, models.prior, lambda sentence: None
    )
    # Only networks look at the original pictures; those of a long video fill the memory.
    keep = not re.fullmatch(r"plane|none|files:.*", prior_name, re.DOTALL)
    return video.read_frames(source, **reading(settings, models), keep_originals=keep)


def reading(settings: Settings, models: Models) -> dict[str, Any]:
    """Returns which frames are read and how, the arguments of `io.video.read_frames`."""
    size = models.model.config.img_size if models.model else FLOW_SIZE
    return dataclasses.asdict(settings.reading) | {"size": settings.reading.size or size}


def fingerprint(
    frames: Frames, config: config_lib.ReconstructConfig, networks: Sequence[Any]
) -> str:
    """Returns a hash of all that a run's stages depend on; the user's files by size and time.

    networks: what has a `checksum` (files of the user included), or None.
    """
    digest = hashlib.sha256(np.ascontiguousarray(frames.images).tobytes())
    digest.update(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for network in networks:
        digest.update((network.checksum if network else "no weights").encode())
    for spec in (config.prior, config.flow.source):
        folder = Path(spec.removeprefix("files:"))
        if spec.startswith("files:") and folder.is_dir():
            for file in sorted(folder.iterdir()):
                found = file.stat()
                digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns}".encode())
    return digest.hexdigest()


def focal_of_pictures(source: str) -> float | None:
    """Returns the focal that the camera wrote into the first picture of a folder or glob.

    In pixels; None if it wrote none, or for videos.
    """
    from align3r_jax.io import exif, images

    if not Path(source).expanduser().is_dir() and not images.is_glob(source):
        return None
    return exif.read_focal(images.list_images(source)[0])


def named(network: Any) -> dict[str, str] | None:
    """Returns what summary.json says of a network, None of none."""
    return None if network is None else {"name": network.name, "checksum": network.checksum}


def remove_partial(folder: Path) -> None:
    """Removes what an interrupted run kept. UserError if the folder holds anything else."""
    foreign = [path.name for path in folder.iterdir() if path.suffix not in (".npz", ".tmp")]
    if foreign:
        raise UserError(
            f"{folder} is where an interrupted run keeps its stages, but it holds {foreign[0]!r}; "
            "move it away or choose another --output."
        )
    shutil.rmtree(folder)
