"""When a run ends before its last step: Ctrl-C, SIGTERM (preemption), a time limit.

All processes must leave the loop at the same step, because writing a checkpoint is a common effort.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class Stopper:
    """Context manager that turns signals into a question asked after every step.

    With several processes SIGTERM is left to JAX's preemption service, which agrees on a step;
    Ctrl-C and the time limit are agreed on at the steps that are logged. Outside the main thread,
    where signals cannot be caught, only the time limit counts. A second Ctrl-C stops at once.
    """

    def __init__(self, max_seconds: float = math.inf):
        self._started = time.monotonic()
        self._max_seconds = max_seconds
        self._caught: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            wanted = [signal.SIGINT]
            if jax.process_count() == 1:
                wanted.append(signal.SIGTERM)
            for number in wanted:
                self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._caught is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._caught = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"

    def reason(self, step: int, together: bool) -> str | None:
        """Returns why to stop after `step`, None to go on.

        together: all processes are at a point where they may wait for one another.
        """
        if jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(step):
                return "SIGTERM"
            if not together:
                return None
        late = time.monotonic() - self._started > self._max_seconds
        reason = self._caught or ("the time limit" if late else None)
        if jax.process_count() == 1:
            return reason
        found = multihost_utils.process_allgather(np.int32(reason is not None))
        return (reason or "another process") if found.any() else None
