"""What the training pipeline costs: samples per second and core, stage by stage, and who waits.

    python -m experiments.benchmark_data [--output=data.json] [--workers=0,2] [--step_seconds=0.5]
    python -m experiments.benchmark_data --dataset=tartanair --root=DIR [--prior=depthpro]

A sample is a pair: two frames read, their prior point maps, crops and colours. Without --root the
rendered sample clip, enlarged to 512x384 (the size at which TartanAir is prepared), is written to
a temporary folder in both prepared formats: four files per frame (`processed`), and ArrayRecord
(`records`). CPU seconds are those of one thread, so that their inverse is samples per second and
core whatever else runs on the machine.

With --step_seconds a jitted step of about that length runs beside the stream, and `waiting` is the
share of the time in which it had to wait for its batch. On an accelerator
the step leaves the cores to the pipeline; on a CPU both share them, unless --idle_step makes it
take time and no core, as a step on an accelerator does.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from align3r_jax.errors import UserError
from align3r_jax.io import preprocess, train_crop, video
from data import augment, pipeline, sample_plan
from data.prepare import run as prepare_run
from data.prepare import settings as prepare_settings
from data.readers.training import TrainingFrame, TrainingScene
from experiments import cli

DATASET = flags.DEFINE_string("dataset", None, "A training set of yours instead; with --root.")
ROOT = flags.DEFINE_string("root", None, "Its folder; only with --dataset.")
PRIOR = flags.DEFINE_string("prior", None, "Its prior files, e.g. depthpro; only with --dataset.")
HEIGHT = flags.DEFINE_integer("height", 288, "Height of the batches in pixels.")
WIDTH = flags.DEFINE_integer("width", 512, "Width of the batches in pixels.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Pairs in a batch.")
SAMPLES = flags.DEFINE_integer("samples", 32, "Pairs measured by stage, and by the stream.")
WORKERS = flags.DEFINE_list("workers", ["0"], "Numbers of processes that load, to compare.")
STEP_SECONDS = flags.DEFINE_float(
    "step_seconds", 0.0, "Length of the step in seconds; 0: none is run."
)
IDLE_STEP = flags.DEFINE_bool(
    "idle_step", False, "The step waits instead of computing: a stand-in for an accelerator."
)
STEPS = flags.DEFINE_integer("steps", 24, "Steps run beside the stream; the last half counts.")
OUTPUT = flags.DEFINE_string("output", None, "Also write the figures as JSON here.")

_SAMPLES = Path(__file__).parents[1] / "data" / "samples"
_PRIOR = "depthpro"


def write_sample(folder: Path, shape: tuple[int, int] = (384, 512)) -> dict[str, Path]:
    """Writes the rendered sample clip as a prepared training set of each format.

    Returns format -> folder. The prior is the true depth: its values do not change the cost.
    """
    with np.load(_SAMPLES / "room_walk.truth.npz") as truth:
        depth = truth["depth"].astype(np.float32)
        poses, intrinsics = truth["world_from_cam"], truth["intrinsics"]
    frames = []
    for k, image in enumerate(video.read_frames(_SAMPLES / "room_walk.mp4", size=320)[0].images):
        whole = train_crop.View(np.asarray(image), {"depth": depth[k]}, intrinsics[k])
        seen = train_crop.resize_to_cover(whole, shape)
        z = seen.maps["depth"]
        focal = float(seen.intrinsics[0, 0])
        frames.append(
            TrainingFrame(seen.image, z, seen.intrinsics, poses[k].astype(np.float64), z, focal)
        )
    names = tuple(f"{k:04d}" for k in range(len(frames)))
    scene = TrainingScene("folder", "room_walk", names, functools.partial(_frame, frames))
    made = {}
    for kind in prepare_settings.FORMATS:
        made[kind] = folder / kind
        chosen = prepare_settings.Settings("folder", format=kind, size=0, prior=_PRIOR)
        prepare_run.prepare(chosen, "train", [scene], [], made[kind], source="the sample clip")
    return made


def stage_rows(plan: sample_plan.SamplePlan, samples: int) -> list[dict[str, Any]]:
    """CPU milliseconds per pair of every stage, and of whole samples, on one thread."""
    options, target = plan.settings.augmentation, plan.settings.resolutions[0]
    generator = np.random.default_rng(0)
    source = plan.sources[0]
    found = source.table.lookup(generator.integers(len(source.table), size=samples))
    wanted = list(zip(found.scene.repeat(2), np.stack([found.first, found.second], 1).reshape(-1)))
    source.scenes[0].load(0)  # opens what stays open

    frames, decode = _timed(lambda: [source.scenes[s].load(int(k)) for s, k in wanted])
    prior = 0.0
    if plan.with_prior:
        _, prior = _timed(lambda: [preprocess.normalised_pointmap(f.prior_depth) for f in frames])
    views = [train_crop.View(f.image, {"depth": f.depth}, f.intrinsics) for f in frames]
    draws = [
        augment.draw_crop(generator, v.shape, v.intrinsics, target, options) for v in views
    ]  # fmt: skip
    cropped, crop = _timed(
        lambda: [train_crop.crop_view(view, target, draw) for view, draw in zip(views, draws)]
    )
    colours = 0.0
    if options.colours is not None:
        jitter = [augment.draw_colours(generator, options.colours) for _ in cropped]
        _, colours = _timed(
            lambda: [augment.apply_colours(v.image, d) for v, d in zip(cropped, jitter)]
        )
    loader = sample_plan.RowLoader(plan, plan.training_draw, np.arange(plan.settings.batch_size))
    steps = max(samples // plan.settings.batch_size, 1)
    loaded, whole = _timed(lambda: [loader(step).failure for step in range(steps)])
    if any(loaded):
        raise UserError(loaded[0])
    seconds = {
        "decode": decode / samples, "prior point map": prior / samples, "crop": crop / samples,
        "colours": colours / samples, "whole sample": whole / steps / plan.settings.batch_size,
    }  # fmt: skip
    return [
        {"stage": name, "cpu_ms_per_pair": 1e3 * value, "pairs_per_core_second": 1 / value}
        for name, value in seconds.items()
        if value > 0
    ]


def stream_row(settings: pipeline.PipelineSettings, samples: int, workers: int) -> dict[str, float]:
    """Pairs per second of the stream by the wall clock, once it runs evenly."""
    settings = dataclasses.replace(settings, workers=workers)
    ahead = max(workers, 1) * settings.prefetch + settings.threads  # loaded before they are wanted
    steps = max(samples // settings.batch_size, 1)
    with pipeline.training_batches(settings, 0, 0, 1) as stream:
        for step in range(ahead):
            stream.batch_of(step)
        started = time.perf_counter()
        for step in range(ahead, ahead + steps):
            stream.batch_of(step)
        seconds = time.perf_counter() - started
    return {"workers": workers, "pairs_per_second": steps * settings.batch_size / seconds}


def waiting_row(
    settings: pipeline.PipelineSettings, workers: int, step_seconds: float, steps: int,
    idle: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Runs a step of about `step_seconds` on every batch; returns how long it waited for them.

    idle: the step takes no core.
    """
    settings = dataclasses.replace(settings, workers=workers)
    with pipeline.training_batches(settings, 0, 0, 1) as stream:
        first = jax.device_put(stream.batch_of(0))
        if idle:
            step, real_seconds = lambda _: time.sleep(step_seconds), step_seconds
        else:
            step, real_seconds = _make_step(first, step_seconds)
        waited, counted = 0.0, max(steps // 2, 1)
        for number in range(1, steps + 1):
            asked = time.perf_counter()
            if number == steps - counted + 1:  # what was loaded ahead at the start is used up
                waited, started = 0.0, asked
            batch = stream.batch_of(number)
            waited += time.perf_counter() - asked
            jax.block_until_ready(step(jax.device_put(batch)))
        total = time.perf_counter() - started
    return {
        "workers": workers,
        "step_seconds": real_seconds,
        "pairs_per_second": counted * settings.batch_size / total,
        "waiting": waited / total,
    }


def _make_step(batch: dict[str, Any], seconds: float) -> tuple[Callable[[Any], Any], float]:
    """A jitted function of the batch that takes about so long: matrix products after a mean."""
    side = 512 if jax.default_backend() == "cpu" else 4096

    def product(matrix: jax.Array) -> jax.Array:
        return matrix @ matrix / jnp.linalg.norm(matrix)

    @jax.jit
    def step(batch: dict[str, jax.Array], count: jax.Array) -> jax.Array:
        start = jnp.mean(batch["images"].astype(jnp.float32)) + jnp.mean(batch["depth"])
        matrix = jnp.full((side, side), start)
        return jax.lax.fori_loop(0, count, lambda _, m: product(m), matrix)

    def timed(count: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(step(batch, count))
        return time.perf_counter() - started

    timed(1)
    few, many = timed(4), timed(36)
    count = max(int(seconds / max((many - few) / 32, 1e-6)), 1)
    return lambda batch: step(batch, count), timed(count)


def main(argv: Sequence[str]) -> None:
    cv2.setNumThreads(1)
    if (DATASET.value is None) != (ROOT.value is None):
        raise UserError("Give --dataset and --root together, or neither for the sample clip.")
    if IDLE_STEP.value and STEP_SECONDS.value <= 0:
        raise UserError("--idle_step needs a length: give --step_seconds too.")
    try:
        workers = [int(value) for value in WORKERS.value]
    except ValueError as error:
        raise UserError(f"--workers must be numbers, got {','.join(WORKERS.value)}.") from error
    report: dict[str, Any] = {"device": str(jax.devices()[0]), "sets": {}}
    with tempfile.TemporaryDirectory() as folder:
        if ROOT.value is None:
            made = write_sample(Path(folder))
            sets = {kind: ("records", str(place), _PRIOR) for kind, place in made.items()}
        else:
            sets = {DATASET.value: (DATASET.value, ROOT.value, PRIOR.value)}
        for title, (name, root, prior) in sets.items():
            settings = pipeline.settings_from(
                {
                    "mixture": name, "roots": {name: root}, "prior": prior,
                    "resolutions": [(HEIGHT.value, WIDTH.value)], "batch_size": BATCH_SIZE.value,
                }
            )  # fmt: skip
            found: dict[str, Any] = {
                "stages": stage_rows(sample_plan.make_plan(settings), SAMPLES.value),
                "streams": [stream_row(settings, SAMPLES.value, count) for count in workers],
            }
            if STEP_SECONDS.value > 0:
                found["waiting"] = [
                    waiting_row(settings, count, STEP_SECONDS.value, STEPS.value, IDLE_STEP.value)
                    for count in workers
                ]
            report["sets"][title] = found
            _show(title, found)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(report, indent=1))


def _show(title: str, found: dict[str, Any]) -> None:
    size = f"{HEIGHT.value}x{WIDTH.value}, batches of {BATCH_SIZE.value} pairs"
    print(f"\n{title} ({size})\n{'stage':18} {'CPU ms per pair':>16} {'pairs/s and core':>17}")
    for row in found["stages"]:
        figures = f"{row['cpu_ms_per_pair']:16.1f} {row['pairs_per_core_second']:17.1f}"
        print(f"{row['stage']:18} {figures}")
    for row in found["streams"]:
        print(f"stream, {row['workers']} workers: {row['pairs_per_second']:.1f} pairs/s")
    for row in found.get("waiting", []):
        print(
            f"steps of {row['step_seconds']:.2f} s, {row['workers']} workers: waited "
            f"{row['waiting']:.1%} of the time, {row['pairs_per_second']:.1f} pairs/s"
        )


def _frame(frames: list[TrainingFrame], index: int) -> TrainingFrame:
    return frames[index]


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    result = function()
    return result, time.process_time() - started


if __name__ == "__main__":
    cli.run(main)
