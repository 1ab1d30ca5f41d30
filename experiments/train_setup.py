"""From settings to what the training loop runs: devices, data, step, evaluation, pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from align3r_jax.errors import UserError
from align3r_jax.structs import Array
from align3r_jax.training import loop, monitor, optimizer, panels, partitioning, state, step
from align3r_jax.training.state import TrainState
from data import pipeline
from data.procedural import stream
from experiments import train_tasks
from experiments.train_settings import RENDERED, TrainSettings

BatchOf = Callable[[int], dict[str, Array]]
_PICTURES = 3  # samples that are drawn


@dataclasses.dataclass(frozen=True)
class Trainer:
    """One configuration, ready. start: gives the state before the first step, placed. abstract:
    its shapes, shardings: a tree like it. scores and maps: jitted (params, batch)."""

    settings: TrainSettings
    task: train_tasks.Task
    mesh: Mesh
    start: Callable[[], TrainState]
    abstract: TrainState
    shardings: Any
    step: loop.Step
    scores: Callable[[Any, Any], dict[str, Array]]
    maps: Callable[[Any, Any], dict[str, Array]] | None

    def loop_settings(self) -> loop.LoopSettings:
        """Returns the part of the settings that the loop reads."""
        names = {field.name for field in dataclasses.fields(loop.LoopSettings)}
        values = {k: v for k, v in vars(self.settings).items() if k in names}
        return loop.LoopSettings(**values, max_seconds=60 * self.settings.max_minutes or math.inf)


def make_trainer(settings: TrainSettings) -> Trainer:
    """Returns the trainer; no array is made and no weights are read yet.

    Raises UserError for settings that do not fit together, or not to the devices.
    """
    task = train_tasks.make_task(settings)
    mesh = partitioning.make_mesh(settings.mesh.data, settings.mesh.fsdp)
    config = settings.optimizer_config()
    _check_devices(settings, mesh, config.accumulate)
    tx = optimizer.make_optimizer(config, settings.batch_size)

    def drawn() -> TrainState:
        return state.create(task.init(jax.random.key(settings.seed)), tx)

    abstract = jax.eval_shape(drawn)
    shardings = partitioning.state_shardings(mesh, abstract)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def start() -> TrainState:
        if settings.init_from is None:
            return jax.jit(drawn, out_shardings=shardings)()
        params = task.read(settings.init_from)
        return jax.jit(lambda p: state.create(p, tx), out_shardings=shardings)(params)

    return Trainer(
        settings,
        task,
        mesh,
        start,
        abstract,
        shardings,
        step.make_step(
            task.loss,
            tx,
            settings.average_decay,
            shardings,
            partitioning.batch_sharding(mesh),
            jnp.bfloat16 if settings.mesh.gather_dtype == "bfloat16" else None,
        ),
        jax.jit(task.score, out_shardings=everywhere),
        None if task.maps is None else jax.jit(task.maps, out_shardings=everywhere),
    )


@contextlib.contextmanager
def compiler(settings: TrainSettings) -> Iterator[None]:
    """Within it programs are compiled as `settings.quick_compile` says."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, settings.quick_compile or before)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _check_devices(settings: TrainSettings, mesh: Mesh, accumulate: int) -> None:
    rows = settings.batch_size
    if rows % mesh.size == 0 and rows % (mesh.size * accumulate):
        fitting = [n for n in range(1, accumulate) if rows % (mesh.size * n) == 0]
        raise UserError(
            f"A batch of {rows} on {mesh.size} devices cannot be taken in {accumulate} parts; set "
            f"config.optimizer.accumulate to {' or '.join(map(str, fitting))}."
        )
    partitioning.check_batch_size(mesh, rows, accumulate)
    shown = settings.evaluate.batch_size
    if settings.evaluate_every and shown % mesh.size:
        raise UserError(
            f"config.evaluate.batch_size={shown} does not divide over {mesh.size} devices; set it "
            f"to a multiple of {mesh.size}."
        )


@contextlib.contextmanager
def open_batches(trainer: Trainer, first_step: int) -> Iterator[BatchOf]:
    """Gives batch_of(step), global arrays on the trainer's mesh, loaded ahead from `first_step`."""
    settings, rendered = trainer.settings, trainer.settings.rendered
    if rendered is not None:
        (height, width), *_ = settings.resolutions
        yield stream.batches(
            batch_size=settings.batch_size,
            height=height,
            width=width,
            seed=settings.seed,
            prior_dropout=rendered.prior_dropout,
            options=rendered.options,
            sharding=partitioning.batch_sharding(trainer.mesh),
        )
        return
    with pipeline.training_batches(settings.pipeline(), first_step) as loaded:
        yield lambda number: partitioning.global_batch(trainer.mesh, loaded.batch_of(number))


def abstract_batch(
    settings: TrainSettings, sharding: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of pairs at the first resolution, as `open_batches` does."""
    height, width = settings.resolutions[0]

    def array(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((settings.batch_size, *shape), dtype, sharding=sharding)

    batch = {"depth": array(2, height, width), "cam1_from_cam2": array(4, 4)}
    if settings.rendered is not None:
        return batch | {
            "images": array(2, height, width, 3),
            "focal": array(),
            "prior_depth": array(2, height, width),
            "prior_focal": array(),
            "has_prior": array(dtype=bool),
        }
    batch |= {
        "images": array(2, height, width, 3, dtype=np.uint8),
        "intrinsics": array(2, 3, 3),
        "portrait": array(2, dtype=bool),
        "has_prior": array(2, dtype=bool),
    }
    if settings.pipeline().prior is not None:
        batch["prior_points"] = array(2, height, width, 3)
    return batch


class _Placed:
    """Batches that are put onto the devices each time they are gone through."""

    def __init__(self, mesh: Mesh, batches: Iterable[Any]):
        self._mesh, self._batches = mesh, batches

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for batch in self._batches:
            yield partitioning.global_batch(self._mesh, batch)


def evaluation_sets(trainer: Trainer) -> dict[str, Iterable[dict[str, Array]]]:
    """Returns the fixed batches of every set of `config.evaluate.sets`.

    Raises UserError for unknown mixtures and folders that are missing.
    """
    settings = trainer.settings
    wanted = settings.evaluate
    height, width = wanted.resolution or settings.resolutions[0]
    found: dict[str, Iterable[dict[str, Array]]] = {}
    for name, mixture in wanted.sets.items():
        if mixture == RENDERED:
            batches: Iterable[Any] = stream.validation_batches(
                height,
                width,
                wanted.batches,
                wanted.batch_size,
                partitioning.batch_sharding(trainer.mesh),
            )
        else:
            values: dict[str, Any] = {"mixture": mixture, "batch_size": wanted.batch_size}
            if wanted.roots:
                values["roots"] = wanted.roots
            batches = pipeline.evaluation_batches(
                settings.pipeline(**values), resolution=(height, width)
            )
        found[name] = _Placed(trainer.mesh, batches)
    return found


def evaluator(
    trainer: Trainer, sets: dict[str, Iterable[dict[str, Array]]]
) -> Callable[[Any], monitor.Results] | None:
    """Returns averaged parameters -> scores, None if nothing is evaluated."""
    if not trainer.settings.evaluate_every:
        return None
    return lambda params: monitor.evaluate(trainer.scores, params, sets)


def painter(
    trainer: Trainer, sets: dict[str, Iterable[dict[str, Array]]], batch_of: BatchOf
) -> Callable[[Any], dict[str, np.ndarray]] | None:
    """Returns averaged parameters -> pictures of the first samples of every evaluation set.

    Without such sets the first batch of the training is drawn. None if there are no pictures.
    """
    if not trainer.settings.images_every or trainer.maps is None:
        return None
    compute = trainer.maps
    fixed: dict[str, dict[str, Array]] = {}

    def paint(params: Any) -> dict[str, np.ndarray]:
        if not fixed:
            fixed.update({name: next(iter(batches)) for name, batches in sets.items()})
            fixed.update({} if fixed else {"train": batch_of(0)})
        drawn = {}
        for name, batch in fixed.items():
            maps = jax.device_get(compute(params, batch))
            for sample in range(min(_PICTURES, len(maps["truth"]))):
                drawn[f"{name}_{sample}"] = panels.draw(maps, sample)
        return drawn

    return paint


def work_folder(path: str) -> Path:
    """Returns the folder of a run. Raises UserError if something else is there."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={path} is a file; name a folder, it is created.")
    return folder
