"""The bookkeeping of a run: stages with time and memory, progress, and resuming from disk.

A stage is a pure function of earlier results. When a run has a folder, what a stage returned is
kept there under a fingerprint of everything it depends on; a resumed run takes it from there.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from align3r_jax.io import atomic

T = TypeVar("T")
_IMPORTED = time.perf_counter()
_MAX_KEPT_BYTES = 2 << 30  # a stage whose result is larger is computed again on resume


class Run:
    """One reconstruction in progress. Without arguments it only measures."""

    def __init__(
        self,
        folder: Path | None = None,
        fingerprint: str = "",
        resume: bool = False,
        show_progress: bool = False,
        stop: Callable[[], bool] = lambda: False,
        allowance: int | None = None,
    ):
        """folder: where finished stages are kept (None: nowhere). resume: take them from there.

        A kept stage is used only if its fingerprint equals `fingerprint`.
        stop: asked between stages and iterations; True interrupts the run as Ctrl-C does.
        allowance: bytes that it may take beside what the process holds; None: see `plan`.
        """
        self._folder = folder
        self._fingerprint = fingerprint
        self._resume = resume
        self._show_progress = show_progress
        self._stop = stop
        self.allowance = allowance
        self.records: list[dict[str, Any]] = []
        self.limits: list[str] = []
        self.facts: dict[str, Any] = {}
        self.products: dict[str, Any] = {}  # intermediate results that a report shows
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def limit(self, sentence: str) -> None:
        """Notes a limit that a reader of the result should know, and logs it once."""
        if sentence not in self.limits:
            self.limits.append(sentence)
            logging.info("%s", sentence)

    def stage(self, name: str, compute: Callable[[], T], keep: bool = True) -> T:
        """Returns `compute()`, or what an interrupted run kept of this stage."""
        self._check()
        path = None
        if self._folder is not None and keep:
            path = self._folder / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.npz"
        if path is not None and self._resume:
            kept = load_tree(path, self._fingerprint)
            if kept is not None:
                self.records.append({"stage": name, "seconds": 0.0, "resumed": True})
                self._say(f"{name}: taken from the interrupted run")
                return kept[0]
        self._say(f"{name} ...")
        reset_peak_memory()
        started = time.perf_counter()
        result = jax.block_until_ready(compute())
        record = {"stage": name, "seconds": round(time.perf_counter() - started, 3)}
        record["since_start"] = round(seconds_since_start(), 3)
        record["peak_memory_mb"] = round(peak_memory_bytes() / 2**20)
        give_back_memory()
        device = jax.local_devices()[0].memory_stats()
        if device and "peak_bytes_in_use" in device:
            record["peak_device_memory_mb"] = round(device["peak_bytes_in_use"] / 2**20)
        self.records.append(record)
        self._say(f"{name}: {record['seconds']:.1f} s")
        if path is not None and _size(result) <= _MAX_KEPT_BYTES:
            save_tree(path, result, self._fingerprint)
        return result

    def progress(self, name: str) -> Callable[[int, int, float], None]:
        """Returns a callback (iteration, total, loss) that draws one bar with the time left."""
        bar: list[tqdm] = []

        def update(iteration: int, total: int, loss: float) -> None:
            self._check()
            if not self._show_progress:
                return
            if not bar or bar[0].total != total or iteration < bar[0].n:
                bar[:] = [tqdm(total=total, desc=name, leave=False)]
            bar[0].set_postfix(loss=f"{loss:.4f}")
            bar[0].update(iteration - bar[0].n)
            if iteration >= total:
                bar[0].close()

        return update

    def tell(self, sentence: str) -> None:
        """Shows a sentence to whoever watches the run; logs it if nobody does."""
        if not self._show_progress:
            logging.info("%s", sentence)
        self._say(sentence)

    def _check(self) -> None:
        if self._stop():
            raise KeyboardInterrupt

    def _say(self, sentence: str) -> None:
        if self._show_progress:
            tqdm.write(sentence)


def seconds_since_start() -> float:
    """Returns wall time since this process started, imports included.

    Since this module was imported where the system does not tell (no /proc).
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = float(fields[19]) / os.sysconf("SC_CLK_TCK")  # after boot, proc(5)
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError, IndexError, ValueError):
        return time.perf_counter() - _IMPORTED


def save_tree(path: Path, tree: Any, fingerprint: str) -> None:
    """Writes a tree of our structs, dicts, tuples, arrays and plain values; whole or not at all."""
    arrays: dict[str, Any] = {}
    description = json.dumps({"fingerprint": fingerprint, "tree": _describe(tree, arrays)})
    with atomic.new_file(path) as file:
        np.savez(file, description=np.array(description), **arrays)


def load_tree(path: Path, fingerprint: str) -> tuple[Any] | None:
    """Returns the tree in a 1-tuple; None if missing, damaged, or of another fingerprint."""
    try:
        with np.load(path, allow_pickle=False) as file:
            description = json.loads(str(file["description"]))
            if description["fingerprint"] != fingerprint:
                return None
            return (_rebuild(description["tree"], file),)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _describe(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    if isinstance(tree, dict):
        return {"dict": {key: _describe(value, arrays) for key, value in tree.items()}}
    if isinstance(tree, tuple | list):
        return {"tuple": [_describe(value, arrays) for value in tree]}
    if hasattr(tree, "__dataclass_fields__"):
        fields = {f: _describe(getattr(tree, f), arrays) for f in tree.__dataclass_fields__}
        kind = type(tree)
        return {"struct": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    name = f"a{len(arrays)}"
    arrays[name] = np.asarray(tree)
    return {"array": name}


def _rebuild(description: Any, arrays: Any) -> Any:
    if "value" in description:
        return description["value"]
    if "dict" in description:
        return {key: _rebuild(value, arrays) for key, value in description["dict"].items()}
    if "tuple" in description:
        return tuple(_rebuild(value, arrays) for value in description["tuple"])
    if "struct" in description:
        module, _, name = description["struct"].partition(":")
        if not module.startswith("align3r_jax."):
            raise ValueError(f"A kept stage holds the foreign type {module}.{name}.")
        kind = getattr(importlib.import_module(module), name)
        fields = {f: _rebuild(v, arrays) for f, v in description["fields"].items()}
        return kind(**fields)
    return arrays[description["array"]]


def _size(tree: Any) -> int:
    return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(tree))


def give_back_memory() -> None:
    """Returns freed memory to the system (glibc; elsewhere nothing).

    Freed arrays of a few megabytes stay with the process otherwise: of 1,000 frames so much that
    the peak of a stage hung on all stages before it, a gigabyte above the sum of its arrays.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return


def reset_peak_memory() -> None:
    """Makes the kernel forget the highest resident size so far (Linux; elsewhere nothing)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_bytes() -> int:
    """Returns the highest resident size of this process since `reset_peak_memory`."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    kilobytes = int(peak[1]) if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024
