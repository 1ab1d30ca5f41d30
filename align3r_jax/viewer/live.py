"""The viewer in a browser: a server on this computer that sends what its controls ask for.

Built on viser, which is imported only here and only when asked for. One thread (`LiveViewer.run`)
compares what the controls say with what was sent last, and sends the difference; a slider that is
dragged therefore never queues up work.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from typing import Any

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import preview
from align3r_jax.viewer import layers, live_controls, live_scene

HOST, PORT = "localhost", 8080
_WAIT = 0.25  # seconds between looks at the clock when nothing happens


class LiveViewer:
    """Shows `layers` until stopped. `url` is where; `run` must be running for it to answer.

    host: localhost shows it to this computer alone; 0.0.0.0 to everyone who reaches it. port: the
    first one tried, the next free one is taken. name: of the page.
    """

    def __init__(
        self,
        shown: layers.Layers,
        look: layers.Look,
        colour: layers.Colour,
        point_size: float = 1.0,
        *,
        host: str = HOST,
        port: int = PORT,
        name: str = "align3r_jax",
    ) -> None:
        viser = _import_viser()
        _check_host(host)
        # It prints its address in a box of its own; ours is printed by the script.
        with contextlib.redirect_stdout(io.StringIO()):
            self._server = viser.ViserServer(host, port, label=name, verbose=False)
        self.url = f"http://{host}:{self._server.get_port()}"
        self._rate = preview.playback_rate(shown.scene.times)
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._scene = live_scene.LiveScene(self._server, shown)
        self._controls = live_controls.Controls(
            self._server, shown.scene, look, colour, point_size, changed=self._wake.set
        )
        self._server.on_client_connect(self._welcome)
        self._sent: live_scene.Wanted | None = None
        self._due = time.monotonic()

    def run(self, seconds: float | None = None) -> None:
        """Answers until `stop`, Ctrl-C, or for so many seconds."""
        end = time.monotonic() + seconds if seconds is not None else np.inf
        while not self._stopped.is_set() and time.monotonic() < end:
            self._step(time.monotonic())
            playing = self._controls.playing
            self._wake.wait(max(self._due - time.monotonic(), 0) if playing else _WAIT)
            self._wake.clear()

    def stop(self) -> None:
        """Ends `run` and the server."""
        self._stopped.set()
        self._wake.set()
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()

    def _step(self, now: float) -> None:
        controls = self._controls
        interval = 1 / (self._rate * controls.speed)
        if controls.playing and now >= self._due:
            controls.next_frame()
            # Where the computer is too slow, frames come late rather than in a burst.
            self._due = max(self._due + interval, now)
        self._due = min(self._due, now + interval)
        wanted = controls.wanted()
        if wanted == self._sent:
            return
        self._scene.update(wanted, self._sent)
        controls.show_picture(self._scene.picture(wanted))
        if wanted.follow:
            for client in self._server.get_clients().values():
                self._scene.look_through(client, wanted.frame)
        elif self._sent is not None and wanted.overviews != self._sent.overviews:
            for client in self._server.get_clients().values():
                self._scene.look_from_outside(client)
        self._sent = wanted

    def _welcome(self, client: Any) -> None:
        """A browser that was opened while the camera is followed sees what the others see."""
        if self._controls.wanted().follow:
            self._scene.look_through(client, self._controls.wanted().frame)


def _check_host(host: str) -> None:
    """Raises UserError if this computer has no such address; viser would try ports for ever."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"No server can be started at --host={host} ({error.strerror or error}); name an "
            f"address of this computer: {HOST} shows it here alone, 0.0.0.0 to everyone."
        ) from error


def _import_viser() -> Any:
    try:
        import viser
    except ImportError as error:
        raise UserError(
            f"The live viewer needs the package viser, which is not installed ({error}): "
            "pip install viser, or make venv. Without it, --save=scene.html writes a page with the "
            "same controls and --render=out.mp4 a video."
        ) from error
    return viser
