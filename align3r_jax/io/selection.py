"""Which frames of a video are taken."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from align3r_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RawFrame:
    """One frame of the source before it is converted: cheap to make, costly to `load`.

    index: position in the source. time: seconds. load: returns (H0, W0, 3) uint8 RGB.
    """

    index: int
    time: float
    name: str
    load: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Frames [start, end) of the source, every `stride`-th, or thinned to at most `fps` frames
    a second by their times; then the first `max_frames` of those.
    """

    start: int = 0
    end: int | None = None
    stride: int = 1
    fps: float | None = None
    max_frames: int | None = None

    def check(self) -> Selection:
        """Returns self. Raises UserError if the settings make no sense alone or together."""
        if self.start < 0:
            raise UserError(f"--start={self.start}: frames are counted from 0.")
        if self.end is not None and self.end <= self.start:
            raise UserError(
                f"--end={self.end} must be greater than --start={self.start}; "
                "the frame at --end is not taken."
            )
        if self.stride < 1:
            raise UserError(f"--stride={self.stride}: it must be 1 (every frame) or more.")
        if self.fps is not None and not (self.fps > 0 and math.isfinite(self.fps)):
            raise UserError(f"--fps={self.fps}: it must be a positive number of frames a second.")
        if self.max_frames is not None and self.max_frames < 2:
            raise UserError(f"--max_frames={self.max_frames}: at least 2 frames are needed.")
        if self.fps is not None and self.stride > 1:
            raise UserError("--fps and --stride both thin the video out; give one of them.")
        return self

    def pick(self, frames: Iterable[RawFrame]) -> Iterator[RawFrame]:
        """Yields the selected frames; reads the source no further than the last of them."""
        taken, origin, next_tick = 0, 0.0, 0
        for frame in frames:
            if self.end is not None and frame.index >= self.end:
                return
            if frame.index < self.start or (frame.index - self.start) % self.stride:
                continue
            if self.fps is not None:
                if taken == 0:
                    origin = frame.time
                # half a millisecond: containers round their time stamps
                tick = math.floor((frame.time - origin + 5e-4) * self.fps)
                if tick < next_tick:
                    continue
                next_tick = tick + 1
            yield frame
            taken += 1
            if taken == self.max_frames or (
                self.end is not None and frame.index + self.stride >= self.end
            ):
                return
