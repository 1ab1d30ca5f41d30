"""One sequence of an evaluation: read, run or read predictions, score; kept on disk, resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import queue
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from align3r_jax import config as config_lib
from align3r_jax.errors import UserError
from align3r_jax.evaluation import methods, predictions, protocols, scores
from align3r_jax.evaluation.protocols import Protocol
from align3r_jax.io import atomic, depth_files
from align3r_jax.io import images as image_files
from align3r_jax.priors.mono_depth import DepthMaps
from data.readers.sequence import EvaluationSequence, FailedSequence
from experiments import devices, evaluation_plots

Opener = Callable[[], EvaluationSequence | FailedSequence]
FORMAT = 2  # of the JSON of a sequence; raise it when a score changes its meaning
_WANTED = {"video_depth": "depth", "single_depth": "depth", "camera_pose": "cameras",
           "motion": "masks"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    """What is the same for all sequences of a run.

    predictions: folder of files to judge instead of running `networks`. output: where results go.
    keep_predictions: also write what was predicted, in the layout that `predictions` reads.
    stored_prior: name of the prior files that lie with the data set ("" for none).
    """

    task: str
    dataset: str
    protocol_name: str
    protocol: Protocol
    networks: methods.Networks
    output: Path
    predictions: Path | None = None
    scalar_first: bool = False
    plots: bool = True
    keep_predictions: bool = False
    stored_prior: str = ""

    def settings(self) -> dict[str, Any]:
        """JSON-able; beside every result, and what its fingerprint is made of."""
        return {
            "format": FORMAT,
            "task": self.task,
            "dataset": self.dataset,
            "protocol": self.protocol_name,
            "choices": config_lib.to_dict(self.protocol),
            "networks": self.networks.checksums,
            "predictions": None if self.predictions is None else str(self.predictions.resolve()),
            "scalar_first": self.scalar_first,
            "stored_prior": self.stored_prior,
        }

    def fingerprint(self, name: str) -> str:
        """Of the settings and of the prediction files of one sequence, by size and time."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        folders = [] if self.predictions is None else [self.predictions / name]
        prior = getattr(self.protocol.running.reconstruct, "prior", "")
        folders += [Path(prior.removeprefix("files:"))] if prior.startswith("files:") else []
        for folder in folders:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                found = file.stat()
                digest.update(f"{file} {found.st_size} {found.st_mtime_ns}".encode())
        return digest.hexdigest()

    def result_path(self, name: str) -> Path:
        """The JSON of a sequence; a slash in its name becomes two underscores."""
        return self.output / "sequences" / f"{name.replace('/', '__')}.json"


def recorded(job: Job, name: str) -> dict[str, Any] | None:
    """Returns what an earlier run wrote of a sequence under the same settings, failed or not."""
    try:
        record = json.loads(job.result_path(name).read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("fingerprint") == job.fingerprint(name) else None


def kept(job: Job, name: str) -> dict[str, Any] | None:
    """Returns the result of a sequence that an earlier run finished under the same settings."""
    record = recorded(job, name)
    return None if record is None or "failed" in record else record


def kept_or_evaluated(job: Job, name: str, open_sequence: Opener) -> dict[str, Any]:
    """Returns what an earlier run finished, else what `evaluate` finds."""
    record = kept(job, name)
    if record is None:
        return evaluate(job, name, open_sequence)
    logging.info("%s: taken from an earlier run", name)
    return record


def kept_or_evaluated_on(
    places: Sequence[jax.Device], job: Job, openers: Sequence[tuple[str, Opener]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, `kept_or_evaluated`) of every sequence as it is done, on several devices.

    An interrupt ends the run as soon as the sequences that are under way are done.
    """
    waiting: queue.SimpleQueue[tuple[str, Opener]] = queue.SimpleQueue()
    for item in openers:
        waiting.put(item)

    def work(own: Job) -> Iterator[tuple[str, dict[str, Any]]]:
        while True:
            try:
                name, opener = waiting.get_nowait()
            except queue.Empty:
                return
            yield name, kept_or_evaluated(own, name, opener)

    networks = ("model", "prior", "flow")
    jobs = [job] * len(places)
    if len(places) > 1:
        jobs = [
            dataclasses.replace(
                job,
                networks=dataclasses.replace(
                    job.networks,
                    **{k: devices.placed(getattr(job.networks, k), place) for k in networks},
                ),
            )
            for place in places
        ]
    yield from devices.run(list(zip(places, jobs)), work)


def evaluate(job: Job, name: str, open_sequence: Opener) -> dict[str, Any]:
    """Returns and writes the record of one sequence; what goes wrong is in it as `failed`."""
    record: dict[str, Any] = {
        "name": name, "fingerprint": job.fingerprint(name), "settings": job.settings(),
    }  # fmt: skip
    try:
        sequence = open_sequence()
        if isinstance(sequence, FailedSequence):
            raise UserError(sequence.reason)
        record |= _score(job, sequence)
    except (UserError, OSError) as error:
        record["failed"] = str(error)
    # One broken sequence must not take the others with it: a defect of ours is told, not hidden.
    except Exception as error:
        logging.exception("%s", name)
        record["failed"] = f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc()
    path = job.result_path(name)
    with atomic.told_to_user(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace_file(path, (json.dumps(_plain(record), indent=1) + "\n").encode())
    return record


def _score(job: Job, sequence: EvaluationSequence) -> dict[str, Any]:
    prediction = _predict(job, sequence)
    if job.keep_predictions:
        _write_prediction(job.output / "predictions" / sequence.name, sequence, prediction)
    movers = job.task == "motion" or (job.task == "video_depth" and sequence.mask_frames is None)
    truth = scores.Truth(
        depth=sequence.depth() if job.task.endswith("depth") and sequence.depth else None,
        world_from_cam=sequence.world_from_cam,
        intrinsics=sequence.intrinsics,
        image_size=sequence.image_size,
        dynamic_mask=sequence.dynamic_mask() if movers and sequence.dynamic_mask else None,
        mask_frames=sequence.mask_frames,
    )
    plots = job.output / "plots" / sequence.name.replace("/", "__")
    pictures: list[str] = []
    if job.task.endswith("depth"):
        compared = scores.depth(prediction, truth, job.protocol)
        found = compared.scores
        if job.plots:
            pictures = evaluation_plots.depth(plots, compared, job.protocol.depth)
    elif job.task == "camera_pose":
        found = scores.camera_pose(prediction, truth)
        if job.plots:
            pictures = evaluation_plots.path(plots, prediction, truth)
    else:
        found = scores.motion_masks(prediction, truth)
        if job.plots:
            images = np.stack([sequence.load_image(path) for path in sequence.images[:1]])
            pictures = evaluation_plots.masks(plots, images, prediction, truth)
    return {
        "scores": found,
        "frames": sequence.num_frames,
        "first_frame": sequence.images[0].name,
        "last_frame": sequence.images[-1].name,
        "notes": [*sequence.notes, *prediction.limits],
        "method": prediction.facts,
        "device": _device(),
        "pictures": pictures,
    }


def _predict(job: Job, sequence: EvaluationSequence) -> methods.Prediction:
    names = image_files.frame_names(list(sequence.images))
    if job.predictions is not None:
        return predictions.read(
            job.predictions / sequence.name,
            names,
            sequence.times,
            want=_WANTED[job.task],
            scalar_first=job.scalar_first,
        )
    originals = np.stack([sequence.load_image(path) for path in sequence.images])
    running = protocols.of_sequence(job.protocol, sequence.name).running
    networks = job.networks
    if job.stored_prior:
        networks = dataclasses.replace(networks, prior=_StoredPrior(sequence, job.stored_prior))
    frames = methods.make_frames(originals, names, sequence.times, running, networks.model)
    if job.task == "single_depth":
        return methods.single_frames(frames, originals, running, networks)
    return methods.reconstruct(frames, originals, running, networks)


class _StoredPrior:
    """The prior files of a sequence as a `DepthModel`."""

    def __init__(self, sequence: EvaluationSequence, name: str):
        if sequence.prior_files is None:
            raise UserError(f"{sequence.dataset} has no place for prior files of '{name}'.")
        self.name = name
        self._maps = [depth_files.read_depth(path) for path in sequence.prior_files(name)]

    def __call__(self, images: np.ndarray) -> DepthMaps:
        del images
        focals = [item.focal for item in self._maps if item.focal is not None]
        focal = np.array(focals, np.float32) if len(focals) == len(self._maps) else None
        depth = np.stack([item.depth for item in self._maps])
        inverse = self.name == "depthanything"
        return DepthMaps(depth, focal, inverse, not inverse)


def _write_prediction(
    folder: Path, sequence: EvaluationSequence, prediction: methods.Prediction
) -> None:
    """What `predictions.read` reads back; depth over the whole picture only if nothing is cut."""
    from align3r_jax.io import preview, trajectory

    names = image_files.frame_names(list(sequence.images))
    if prediction.depth is not None:
        size = prediction.size
        if size is not None and size.resized != size.working:
            prediction = dataclasses.replace(
                prediction, depth=scores.to_truth_size(prediction, size.resized, "linear")
            )
        (folder / "depth").mkdir(parents=True, exist_ok=True)
        for name, depth in zip(names, prediction.depth):
            depth_files.write_depth(folder / "depth" / f"{name}.npy", depth)
        if prediction.inverse:
            (folder / "depth" / depth_files.SIDECAR).write_text('{"inverse": true}\n')
    if prediction.world_from_cam is not None:
        folder.mkdir(parents=True, exist_ok=True)
        times = np.arange(len(names)) if sequence.times is None else sequence.times
        trajectory.write_tum(folder / "pred_traj.txt", times, prediction.world_from_cam)
    if prediction.dynamic_mask is not None:
        (folder / "dynamic_mask").mkdir(parents=True, exist_ok=True)
        for name, mask in zip(names, prediction.dynamic_mask):
            picture = preview.encode_png(mask.astype(np.uint8) * 255)
            (folder / "dynamic_mask" / f"{name}.png").write_bytes(picture)


def _device() -> str:
    """Where this thread computes, "cpu:0"."""
    (device,) = jnp.zeros(()).devices()
    return f"{device.platform}:{device.id}"


def _plain(value: Any) -> Any:
    """JSON knows no NaN: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
