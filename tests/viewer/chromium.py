"""A headless Chromium driven over its DevTools pipe, with the standard library alone."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--hide-scrollbars", "--remote-debugging-pipe", "about:blank",
)  # fmt: skip
TIMEOUT = 120.0
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))"


class Page:
    """One tab. `problems` collects console errors, exceptions and requests to the network."""

    def __init__(self, to_browser: int, from_browser: int):
        self._to, self._from = to_browser, from_browser
        self._buffer, self._count = b"", 0
        self._session: str | None = None
        self._loaded = False
        self.problems: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters) -> dict:
        """Sends a command and returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def open(self, path: Path | str) -> None:
        """Opens a local file, or an address of this computer, and waits until it is loaded."""
        self._loaded = False
        self.send("Page.navigate", url=path if isinstance(path, str) else path.as_uri())
        while not self._loaded:
            self._receive()

    def script_first(self, source: str) -> None:
        """Runs `source` before the scripts of every page opened from now on."""
        self.send("Page.addScriptToEvaluateOnNewDocument", source=source)

    def evaluate(self, expression: str):
        """Returns the JSON value of an expression, awaited if it is a promise."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True,
                           awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        """Sets the size of the window's content in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=phone)  # fmt: skip

    def prefer(self, **media: str) -> None:
        """Sets media features, `prefer(prefers_color_scheme="dark")`."""
        features = [{"name": k.replace("_", "-"), "value": v} for k, v in media.items()]
        self.send("Emulation.setEmulatedMedia", features=features)

    def box(self, selector: str) -> dict[str, float]:
        """Scrolls an element into view and returns its x, y, width, height in the window."""
        return self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center'}); return e.getBoundingClientRect().toJSON(); })()"
        )

    def picture(self, selector: str | None = None) -> np.ndarray:
        """Returns (H, W, 3) uint8 RGB of what an element, or the whole window, looks like.

        Waits for two animation frames first: pages draw in the next one after an event.
        """
        options: dict = {}
        if selector is not None:
            box = self.box(selector)
            offset = self.evaluate("[scrollX, scrollY]")
            options["clip"] = {"x": box["x"] + offset[0], "y": box["y"] + offset[1], "scale": 1,
                               "width": box["width"], "height": box["height"]}  # fmt: skip
        self.evaluate(DRAWN)
        data = base64.b64decode(self.send("Page.captureScreenshot", **options)["data"])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    def click(self, selector: str) -> None:
        """Clicks the middle of an element."""
        box = self.box(selector)
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for kind in ("mousePressed", "mouseReleased"):
            self._mouse(kind, x, y, buttons=int(kind == "mousePressed"))

    def drag(self, selector: str, dx: float, dy: float) -> None:
        """Drags from the middle of an element."""
        box = self.box(selector)
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self._mouse("mousePressed", x, y, buttons=1)
        for step in (0.5, 1.0):
            self._mouse("mouseMoved", x + step * dx, y + step * dy, buttons=1)
        self._mouse("mouseReleased", x + dx, y + dy, buttons=0)

    def scroll(self, selector: str, delta: float) -> None:
        """Turns the mouse wheel over the middle of an element."""
        box = self.box(selector)
        self.send("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=delta,
                  x=box["x"] + box["width"] / 2, y=box["y"] + box["height"] / 2)  # fmt: skip

    def press(self, key: str) -> None:
        """Presses and releases a key, named as in KeyboardEvent.key: "Tab", "ArrowLeft", " "."""
        codes = {"Tab": 9, " ": 32, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36,
                 "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip
        named = {"key": key, "code": "Space" if key == " " else key,
                 "windowsVirtualKeyCode": codes[key]}  # fmt: skip
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown",
                  **named, **text)  # fmt: skip
        self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def wait_until(self, condition: str, seconds: float = 30.0) -> None:
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.02)

    def set_value(self, selector: str, value: object) -> None:
        """Sets a slider or a list as a person would, so that the page hears of it."""
        self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = "
            f"{json.dumps(str(value))}; e.dispatchEvent(new Event('input', {{bubbles: true}})); "
            "e.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def _mouse(self, kind: str, x: float, y: float, buttons: int) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                  buttons=buttons, clickCount=1)  # fmt: skip

    def _receive(self) -> dict:
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], deadline - time.monotonic())
            chunk = os.read(self._from, 1 << 20) if ready else b""
            assert chunk, "Chromium does not answer"
            self._buffer += chunk
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(raw)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, parameters: dict) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.problems.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.problems.append(f"request to {url}")


@contextlib.contextmanager
def launch() -> Iterator[Page]:
    """Starts a browser with a new profile and gives its page; ends it afterwards."""
    commands_out, commands_in = os.pipe()
    answers_out, answers_in = os.pipe()

    # Chromium reads commands from 3 and answers on 4. The shell connects them, because running
    # Python between fork and exec is unsafe beside the threads of JAX.
    connected = f'exec "$0" "$@" 3</dev/fd/{commands_out} 4>/dev/fd/{answers_in}'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["/bin/sh", "-c", connected, str(PROGRAM), f"--user-data-dir={profile}", *FLAGS],
            pass_fds=(commands_out, answers_in), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands_out)
        os.close(answers_in)
        try:
            yield Page(commands_in, answers_out)
        finally:
            os.close(commands_in)
            os.close(answers_out)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
