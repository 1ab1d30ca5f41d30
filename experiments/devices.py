"""The devices of one process side by side: a thread for each, which takes work until none is left.

A piece of work runs on its device from end to end (`jax.default_device`, which holds for a thread),
so its numbers do not depend on how many devices there are. Threads share nothing but compiled
functions and caches on disk that are written file by file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax

from align3r_jax.errors import UserError
from align3r_jax.weights.store import LoadedNetwork

Place = TypeVar("Place")
Result = TypeVar("Result")
_END = object()


def chosen(text: str) -> list[jax.Device]:
    """Returns the devices that "2" or "all" means. Raises UserError."""
    there = jax.local_devices()
    if text == "all":
        return there
    if not text.isdecimal() or not 1 <= int(text) <= len(there):
        raise UserError(
            f"--devices={text}: expected all or a number from 1 to {len(there)}, which is how many "
            f"{there[0].platform} devices this process sees."
        )
    return there[: int(text)]


def run(
    places: Sequence[tuple[jax.Device, Place]],
    work: Callable[[Place], Iterator[Result]],
    stop: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Yields what `work(place)` yields for every place, on its device, as it comes.

    With one place everything happens in this thread, in order. When one fails, or the caller goes
    away, `stop` is called and what the others are at is waited for; then the error is raised.
    """
    if len(places) == 1:
        ((device, place),) = places
        yield from _on(device, work(place))
        return
    found: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    stopped = threading.Event()

    def thread(device: jax.Device, place: Place) -> None:
        try:
            for result in _on(device, work(place)):
                found.put(("result", result))
                if stopped.is_set():
                    break
        except BaseException as error:  # raised again where the results are awaited
            found.put(("error", error))
        found.put(("end", None))

    threads = [threading.Thread(target=thread, args=place) for place in places]
    for one in threads:
        one.start()
    try:
        ended = 0
        while ended < len(threads):
            kind, value = found.get()
            if kind == "error":
                raise value
            if kind == "result":
                yield value
            ended += kind == "end"
    finally:
        stopped.set()
        stop()
        for one in threads:
            one.join()


def _on(device: jax.Device, results: Iterator[Result]) -> Iterator[Result]:
    """The results, each made with this default device; between them the caller's own holds."""
    with contextlib.closing(results):  # type: ignore[type-var]
        while True:
            with jax.default_device(device):
                result: Any = next(results, _END)
            if result is _END:
                return
            yield result


def placed(network: Any, device: jax.Device) -> Any:
    """Returns a network with its parameters on a device; models of other kinds as they are."""
    if not isinstance(network, LoadedNetwork):
        return network
    return dataclasses.replace(network, params=jax.device_put(network.params, device))
