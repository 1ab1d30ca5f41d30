"""Sequences of an evaluation dealt out to the devices of one process: a thread for each device.

A sequence runs on one device from end to end (`jax.default_device`, which holds for a thread), so
its numbers do not depend on how many devices there are. Nothing is shared between threads but
compiled functions and the disk cache of depth priors, which is written file by file.
"""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax

from align3r_jax.errors import UserError
from align3r_jax.evaluation import methods
from align3r_jax.weights.store import LoadedNetwork
from experiments.evaluation_run import Job

Opener = Callable[[], Any]


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
    job: Job,
    openers: Sequence[tuple[str, Opener]],
    devices: Sequence[jax.Device],
    one: Callable[[Job, str, Opener], dict[str, Any]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, record) of every sequence as it is done; one(job, name, opener) makes it.

    With one device sequences run one after the other, in order. An interrupt ends the run as soon
    as the sequences that are under way are done.
    """
    if len(devices) == 1:
        for name, opener in openers:
            with jax.default_device(devices[0]):
                record = one(job, name, opener)
            yield name, record
        return
    free: queue.SimpleQueue[tuple[jax.Device, Job]] = queue.SimpleQueue()
    for device in devices:
        free.put((device, dataclasses.replace(job, networks=_placed(job.networks, device))))

    def on_a_free_device(name: str, opener: Opener) -> dict[str, Any]:
        device, own = free.get()
        try:
            with jax.default_device(device):
                return one(own, name, opener)
        finally:
            free.put((device, own))

    with futures.ThreadPoolExecutor(len(devices)) as pool:
        waiting = {pool.submit(on_a_free_device, *item): item[0] for item in openers}
        try:
            for done in futures.as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _placed(networks: methods.Networks, device: jax.Device) -> methods.Networks:
    """The networks with their parameters on a device; models of other kinds as they are."""

    def move(network: Any) -> Any:
        if not isinstance(network, LoadedNetwork):
            return network
        return dataclasses.replace(network, params=jax.device_put(network.params, device))

    moved = {name: move(getattr(networks, name)) for name in ("model", "prior", "flow")}
    return dataclasses.replace(networks, **moved)
