"""Frames of scenes loaded, prepared and encoded, in order, by any number of processes."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Generic, NamedTuple, TypeVar

import cv2

from align3r_jax.errors import UserError
from data.prepare import resize
from data.readers.training import TrainingFrame, TrainingScene

_AHEAD = 4  # frames under way or waiting, per process
_Result = TypeVar("_Result")


class Place(NamedTuple):
    """Numbers of a scene among those of the split, and of a frame in its scene."""

    scene: int
    frame: int


FIRST = Place(0, 0)


class Outcome(NamedTuple, Generic[_Result]):
    """What became of one frame: `result` of the job, or None and the sentence that says why."""

    place: Place
    result: _Result | None
    reason: str | None


# Of one frame at its final size: what to keep of it. Module-level or a partial of such.
Job = Callable[[TrainingScene, int, TrainingFrame], _Result]


def places(scenes: Sequence[TrainingScene], start: Place = FIRST) -> Iterator[Place]:
    """Yields the frames of all scenes in order, from `start` on."""
    for number in range(start.scene, len(scenes)):
        first = start.frame if number == start.scene else 0
        for frame in range(first, scenes[number].num_frames):
            yield Place(number, frame)


def outcomes(
    scenes: Sequence[TrainingScene],
    todo: Iterator[Place],
    job: Job[_Result],
    size: int,
    workers: int,
) -> Generator[Outcome[_Result], None, None]:
    """Yields the outcome of every place in the order given, whatever the number of processes.

    size: as `resize.prepare_frame`. workers: processes, 0: this one does the work.
    Frames that cannot be read are outcomes with a reason; what fails in the job itself is raised.
    Raises UserError if a process dies.
    """
    if workers == 0:
        for place in todo:
            yield _work(scenes, job, size, place)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(list(scenes), job, size),
    )
    try:
        waiting: collections.deque = collections.deque()
        for place in todo:
            with _deaf_to_interrupts():  # may start a process
                waiting.append(pool.submit(_work_here, place))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"One of {workers} worker processes ended unexpectedly, perhaps for lack of memory. "
            "Run the same command again with fewer --workers; it goes on where it stopped."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def usable_cores() -> int:
    """Cores that this process may use."""
    with contextlib.suppress(AttributeError):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_mine: tuple[Sequence[TrainingScene], Job, int] | None = None  # of a worker process


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started meanwhile never sees Ctrl-C, not even before its own first line."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say so
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin(scenes: Sequence[TrainingScene], job: Job, size: int) -> None:
    global _mine
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the main process ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(0)
    _mine = scenes, job, size


def _end_with_parent() -> None:
    """A main process that was killed cannot end us, and we would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work_here(place: Place) -> Outcome:
    assert _mine is not None
    scenes, job, size = _mine
    return _work(scenes, job, size, place)


def _work(
    scenes: Sequence[TrainingScene], job: Job[_Result], size: int, place: Place
) -> Outcome[_Result]:
    scene = scenes[place.scene]
    name = scene.frames[place.frame]
    try:
        frame = resize.prepare_frame(scene.load(place.frame), size)
        frame.check(f"{scene.name}, {name}")
    except (UserError, OSError, ValueError) as error:
        return Outcome(place, None, str(error) or type(error).__name__)
    return Outcome(place, job(scene, place.frame, frame), None)
