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
from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import SingleDeviceSharding

from align3r_jax.errors import UserError
from align3r_jax.weights import placement
from align3r_jax.weights.placement import Shardings
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


class Division(NamedTuple):
    """How devices work on one clip. together: so many on each; 0: as `fsdp` needs. fsdp: parameters
    of the pairwise network are split over so many of them; 0: no more than they need to fit."""

    together: int = 0
    fsdp: int = 0


def open_divided(
    load: Callable[[Shardings], LoadedNetwork],
    available: Sequence[jax.Device],
    division: Division,
    groups: int | None = None,
) -> list[tuple[jax.Device, LoadedNetwork]]:
    """Returns (first device, network) of groups of devices that work on a clip each.

    load: reads the network into these shardings, each device its part; it is called once, other
    groups get copies. groups: at most so many. Raises UserError for numbers that do not divide.
    """
    chosen: list[int] = []

    def first_group(abstract: Any) -> Any:
        size, parts = division
        parts = parts or placement.parts_that_fit(abstract, available[: size or len(available)])
        size = size or parts
        if size < 1 or parts < 1 or size % parts or len(available) % size:
            raise UserError(
                f"{size} devices on each clip with parameters split over {parts}: of "
                f"{len(available)} devices, --devices_per_clip must be a divisor, and --fsdp a "
                "divisor of that."
            )
        chosen[:] = [size, parts]
        return _shardings(available[:size], parts, abstract)

    network = load(first_group)
    size, parts = chosen
    starts = list(range(0, len(available), size))[:groups]
    found = [(available[0], network)]
    for start in starts[1:]:
        target = _shardings(available[start : start + size], parts, network.params)
        copy = dataclasses.replace(network, params=jax.device_put(network.params, target))
        found.append((available[start], copy))
    return found


def _shardings(group: Sequence[jax.Device], parts: int, abstract: Any) -> Any:
    if len(group) == 1:
        alone = SingleDeviceSharding(group[0])
        return jax.tree.map(lambda leaf: alone, abstract)
    return placement.split_over(placement.make_mesh(group, parts), abstract)


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
