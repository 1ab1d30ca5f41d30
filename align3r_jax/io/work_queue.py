"""Work shared by processes that see one folder: who works on what is said by files alone.

    while (lease := queue.take(names, finished)) is not None:
        ...
        lease.finish({"status": "finished"})

Every attempt at an item is a new file NAME.0001.lease, NAME.0002.lease, ... made with O_EXCL, so
that one process gets it; the highest number holds the item. A lease is never removed or taken away,
only followed by the next one: when its process released it, is known to be dead, or gave no sign of
life for `stale_after` seconds. Signs of life are times of change of the lease, compared with that
of a file touched at the same moment, so clocks of hosts need not agree. NAME.json is the outcome.
Nothing is lost if a process is killed at any point; whoever is left, or starts later, goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from align3r_jax.io import atomic

STALE_AFTER = 120.0  # seconds; network file systems may show times of change a minute late
_BEATS = 6  # signs of life in that time
_PLACE = ("host", "boot", "container")  # where process numbers mean the same
_LEASE = re.compile(r"(.+)\.(\d{4,})\.lease")


@dataclasses.dataclass
class Lease:
    """The right to work on an item.

    attempts: how many processes died while they held it. lost: another process holds it by now,
    because this one gave no sign of life for long; what is done may be done twice then.
    """

    queue: WorkQueue
    name: str
    number: int
    attempts: int
    lost: bool = False

    def finish(self, outcome: Mapping[str, Any]) -> bool:
        """Writes the outcome and gives the item back; False, and nothing is written, if lost."""
        return self.queue._give_back(self, outcome)

    def release(self) -> None:
        """Gives the item back as it was: anybody may take it at once."""
        self.queue._give_back(self, None)


class WorkQueue:
    """Leases of items; used by all threads of a process. Use as a context manager, or `close`."""

    def __init__(self, folder: str | Path, stale_after: float = STALE_AFTER):
        """folder: of leases and outcomes, made if missing. stale_after: see the module; seconds."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stale_after = stale_after
        self._me = {**_place_of_process(), "pid": os.getpid(), "born": _born(os.getpid())}
        self._held: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._clock = self.folder / f".clock.{secrets.token_hex(6)}"
        self._started = self._now()
        self._stopped, self._closed = threading.Event(), threading.Event()
        self._beats: threading.Thread | None = None

    def __enter__(self) -> WorkQueue:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases what is held."""
        self.stop()
        self._closed.set()
        for lease in list(self._held.values()):
            lease.release()
        self._clock.unlink(missing_ok=True)

    def stop(self) -> None:
        """Makes `take` return None, at once where it waits; what is held stays held."""
        self._stopped.set()

    def take(
        self, names: Sequence[str], finished: Callable[[str], bool], poll: float = 1.0
    ) -> Lease | None:
        """Returns a lease of the first item that nobody holds; None once all are finished.

        While others hold all that is left, it waits and looks every `poll` seconds: their
        processes may die. None also after `stop`.
        """
        while not self._stopped.is_set():
            left = [name for name in names if not finished(name)]
            if not left:
                return None
            for name, lease in self._claims(left):
                if lease is None:
                    continue
                if not finished(name):  # it was when we looked, perhaps not when we claimed
                    return lease
                lease.release()
            self._stopped.wait(poll)
        return None

    def claim(self, name: str) -> Lease | None:
        """Returns a lease, None if a living process holds the item."""
        return next(self._claims([name]))[1]

    def outcome(self, name: str) -> dict[str, Any] | None:
        """Returns what `finish` wrote last, None if nothing; "recent": since this queue opened."""
        path = self.folder / f"{name}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {**found, "recent": path.stat().st_mtime >= self._started}
        except (OSError, ValueError, TypeError):
            return None

    def holders(self) -> dict[str, dict[str, Any]]:
        """Returns item -> host and process that hold it, as far as they live."""
        held = {}
        for name, number in self._numbers().items():
            found = self._read(name, number)
            if found and not found.get("released") and not self._is_stale(name, number, found):
                held[name] = {key: found.get(key) for key in ("host", "pid")}
        return held

    def _claims(self, names: Sequence[str]) -> Iterator[tuple[str, Lease | None]]:
        numbers = self._numbers()
        for name in names:
            yield name, self._claim(name, numbers.get(name, 0))

    def _claim(self, name: str, number: int) -> Lease | None:
        """A lease after the one of this number (0: none yet)."""
        attempts = 0
        if number:
            if name in self._held:
                return None
            found = self._read(name, number)
            if found is None or not found.get("released"):
                if not self._is_stale(name, number, found):
                    return None
                attempts = 1
            attempts += int((found or {}).get("attempts", 0))
        content = json.dumps({**self._me, "attempts": attempts}).encode()
        try:
            file = os.open(self._path(name, number + 1), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return None
        with os.fdopen(file, "wb") as stream:
            stream.write(content)
        lease = Lease(self, name, number + 1, attempts)
        with self._lock:
            self._held[name] = lease
            if self._beats is None:
                self._beats = threading.Thread(target=self._beat, daemon=True)
                self._beats.start()
        return lease

    def _give_back(self, lease: Lease, outcome: Mapping[str, Any] | None) -> bool:
        with self._lock:
            mine = self._held.get(lease.name) is lease and not self._is_lost(lease)
            self._held.pop(lease.name, None)
        if not mine:
            return False
        attempts = lease.attempts
        if outcome is not None:
            attempts = 0
            text = json.dumps(dict(outcome), indent=1) + "\n"
            atomic.replace_file(self.folder / f"{lease.name}.json", text.encode())
        content = json.dumps({**self._me, "attempts": attempts, "released": True})
        atomic.replace_file(self._path(lease.name, lease.number), content.encode())
        return True

    def _beat(self) -> None:
        """Shows that this process lives, and notices what it has lost."""
        while not self._closed.wait(self.stale_after / _BEATS):
            with self._lock:
                for lease in self._held.values():
                    if self._is_lost(lease):
                        continue
                    with contextlib.suppress(OSError):  # seen late rather than not at all
                        os.utime(self._path(lease.name, lease.number))

    def _is_lost(self, lease: Lease) -> bool:
        lease.lost = lease.lost or self._path(lease.name, lease.number + 1).exists()
        return lease.lost

    def _is_stale(self, name: str, number: int, found: Mapping[str, Any] | None) -> bool:
        """Whether the process of a lease is dead, or silent for long. found: None: unreadable."""
        here = found is not None and all(found.get(k) == self._me[k] for k in _PLACE)
        if here and found is not None and _born(found["pid"]) != found["born"]:
            return True
        try:
            # Opened, because network file systems look again at a file that is opened.
            with self._path(name, number).open("rb") as file:
                changed = os.fstat(file.fileno()).st_mtime
        except OSError:
            return False
        return self._now() - changed > self.stale_after

    def _now(self) -> float:
        """The time of the file system."""
        self._clock.touch()
        return self._clock.stat().st_mtime

    def _read(self, name: str, number: int) -> dict[str, Any] | None:
        try:
            found = json.loads(self._path(name, number).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # its process is just writing it, or died then
        return found if isinstance(found, dict) else None

    def _numbers(self) -> dict[str, int]:
        """Item -> number of its last lease."""
        numbers: dict[str, int] = {}
        for file in os.listdir(self.folder):
            match = _LEASE.fullmatch(file)
            if match:
                numbers[match[1]] = max(int(match[2]), numbers.get(match[1], 0))
        return numbers

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number:04d}.lease"


def _place_of_process() -> dict[str, str]:
    """The machine since it was started, and the container on it."""
    place = dict.fromkeys(_PLACE, "") | {"host": socket.gethostname()}
    with contextlib.suppress(OSError):
        place["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        place["container"] = os.readlink("/proc/self/ns/pid")
    return place


def _born(pid: int) -> str:
    """When a process was started; "" if it is dead (Linux), or nothing is known of processes."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
