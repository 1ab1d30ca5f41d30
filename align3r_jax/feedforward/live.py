"""Real-time mode over a stream: a frame in, its result in the folder, before the next is taken."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.feedforward.anchor import FrameResult
from align3r_jax.feedforward.engines import Engine
from align3r_jax.feedforward.run import PriorOf
from align3r_jax.io import preprocess
from align3r_jax.io.live_folder import LiveFolder
from align3r_jax.io.selection import RawFrame
from align3r_jax.structs import Frames, WorkingSize

_REMEMBERED = 1024  # latencies; bounds the memory


@dataclasses.dataclass
class Speed:
    """frames: that were worked on. dropped: that a camera gave meanwhile. seconds: from the first
    frame to the last result. latency: of the last ones, from a frame's arrival to its result in
    the folder; the first frame, which compiles, does not count."""

    frames: int = 0
    dropped: int = 0
    seconds: float = 0.0
    latency: deque[float] = dataclasses.field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    @property
    def frames_per_second(self) -> float:
        """What the work alone allows: one over the mean latency."""
        return 1 / float(np.mean(self.latency)) if self.latency else 0.0

    def facts(self) -> dict[str, Any]:
        """Returns what `summary.json` says."""
        p50, p95 = np.percentile(self.latency, [50, 95]) if self.latency else (0.0, 0.0)
        return {
            "frames_per_second": self.frames_per_second,
            "latency_seconds": {"p50": float(p50), "p95": float(p95)},
            "dropped_frames": self.dropped,
            "seconds": self.seconds,
        }

    def sentence(self) -> str:
        """Returns the same as a line of text."""
        facts = self.facts()
        latency = facts["latency_seconds"]
        dropped = f", {self.dropped} dropped" if self.dropped else ""
        return (
            f"{self.frames} frames, {facts['frames_per_second']:.1f} frames/s, latency "
            f"{1e3 * latency['p50']:.0f} ms (p95 {1e3 * latency['p95']:.0f} ms){dropped}"
        )


@dataclasses.dataclass
class Streamed:
    """What a stream came to. folder: None if not a frame came. lost: numbers of frames without a
    camera of their own, the first ones. anchors: numbers of those that became the anchor."""

    folder: LiveFolder | None
    speed: Speed
    lost: list[int]
    anchors: list[int]


def stream(
    frames: Iterator[RawFrame],
    *,
    size: int,
    crop: bool,
    open_engine: Callable[[WorkingSize], Engine],
    prior_of: PriorOf,
    open_folder: Callable[[WorkingSize], LiveFolder],
    keep_originals: bool = False,
    tell: Callable[[Speed, FrameResult], None] = lambda speed, result: None,
) -> Streamed:
    """Works through the frames until they end or Ctrl-C is pressed; then returns normally.

    size, crop: of the working size (`preprocess.plan_working_size`). prior_of: of every frame
    alone; keep_originals: it gets the original picture. open_engine, open_folder: called with the
    first frame's sizes. tell: after every frame. Raises UserError if the frames differ in size.
    """
    plan: WorkingSize | None = None
    speed = Speed()
    done = Streamed(None, speed, [], [])
    begun, index = time.monotonic(), -1
    engine: Engine | None = None
    try:
        for frame in frames:
            arrived = time.monotonic()
            picture = frame.load()
            if plan is None:
                plan = preprocess.plan_working_size(picture.shape[:2], size, crop=crop)
                engine, done.folder = open_engine(plan), open_folder(plan)
            elif picture.shape[:2] != plan.original:
                raise UserError(
                    f"The frames of a stream must be equal in size: frame {frame.name} is "
                    f"{picture.shape[1]}x{picture.shape[0]}, those before are "
                    f"{plan.original[1]}x{plan.original[0]}."
                )
            assert engine is not None and done.folder is not None
            image = preprocess.to_working_size(picture, plan)
            alone = Frames(image[None], np.array([frame.time]), plan, (frame.name,))
            prior = prior_of(alone, picture if keep_originals else None)
            result = engine.push(image, prior)
            done.folder.add(
                name=frame.name,
                seconds=frame.time,
                image=image,
                depth=result.depth,
                confidence=result.confidence,
                dynamic_mask=result.dynamic_mask,
                world_from_cam=result.world_from_cam,
                intrinsics=result.intrinsics,
            )
            _count(done, frame, index, result)
            index = frame.index
            now = time.monotonic()
            # The first two compile.
            if speed.frames > 2:
                speed.latency.append(now - arrived)
            speed.seconds = now - begun
            tell(speed, result)
    except KeyboardInterrupt:
        if not speed.frames:
            raise
    return done


def _count(done: Streamed, frame: RawFrame, last: int, result: FrameResult) -> None:
    number = done.speed.frames
    done.speed.frames += 1
    if last >= 0:
        done.speed.dropped += frame.index - last - 1
    for numbers, holds in ((done.lost, not result.good), (done.anchors, result.is_anchor)):
        if holds and len(numbers) < _REMEMBERED:
            numbers.append(number)
