"""Flow between the current frame, the anchor and the frames just before it; on the host, causal.

The flow to the anchor is that to the frame before, continued by one step: a search between
neighbours does not get lost. Where a search over the whole way, started from there, keeps more
pixels consistent, it is used instead. What is remembered does not grow with the length of the
video: the anchor's picture, the last few pictures' flow, two fields.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable

import cv2
import numpy as np

from align3r_jax.config import FlowConfig
from align3r_jax.errors import UserError
from align3r_jax.feedforward import motion
from align3r_jax.priors import optical_flow
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import Frames, WorkingSize

Flows = tuple[np.ndarray, np.ndarray]  # from the first of two pictures to the second, and back
# (two pictures, flows to start from or None) -> both flows, (H, W, 2) each.
Match = Callable[[np.ndarray, np.ndarray, Flows | None], Flows]


@dataclasses.dataclass(frozen=True)
class Tracks:
    """Flow of one frame, NumPy. from_anchor, to_anchor: (H, W, 2) pixels; their weights: (H, W) 1
    where they are consistent, else 0. past: to the frames before."""

    from_anchor: np.ndarray
    from_anchor_weight: np.ndarray
    to_anchor: np.ndarray
    to_anchor_weight: np.ndarray
    past: motion.PastFlow


class Tracker:
    """Follows the anchor through the video.

    source: a flow network's source, or None for OpenCV's DIS. Raises UserError for flow from files,
    which a stream does not have.
    """

    def __init__(self, config: FlowConfig, source: FlowSource | None = None, anchor: bool = True):
        """anchor: False leaves out the flow to the anchor (only the motion masks need flow)."""
        self._config, self._with_anchor = config, anchor
        self._match = dis_match(config) if source is None else _source_match(source)
        self._searches = source is None
        self._anchor: np.ndarray | None = None
        self._before: np.ndarray | None = None
        self._there: np.ndarray | None = None  # anchor -> frame before
        self._back: np.ndarray | None = None  # frame before -> anchor
        self._steps: deque[Flows] = deque(maxlen=motion.BEFORE - 1)

    def advance(self, image: np.ndarray) -> Tracks:
        """Returns the flow of the next frame, (H, W, 3) uint8. The first frame is the anchor."""
        image = np.asarray(image)
        if self._before is None:
            self._anchor = self._before = image
            self._there = self._back = np.zeros((*image.shape[:2], 2), np.float32)
            return self._result([])
        forward, backward = self._match(self._before, image, None)
        past = [(backward, forward)]
        for to_older, from_older in self._steps:
            newest_back, newest_there = past[-1]
            past.append(
                (
                    optical_flow.compose(newest_back, to_older),
                    optical_flow.compose(from_older, newest_there),
                )
            )
        self._steps.appendleft((backward, forward))
        if self._with_anchor:
            self._follow(image, forward, backward)
        self._before = image
        return self._result(past)

    def set_anchor(self) -> None:
        """Makes the frame that was given last the anchor."""
        self._anchor = self._before
        if self._there is not None:
            self._there = self._back = np.zeros_like(self._there)

    def _follow(self, image: np.ndarray, forward: np.ndarray, backward: np.ndarray) -> None:
        assert self._there is not None and self._back is not None and self._anchor is not None
        there = optical_flow.compose(self._there, forward)
        back = optical_flow.compose(backward, self._back)
        if self._searches and self._anchor is not self._before:
            searched, returned = self._match(self._anchor, image, (there, back))
            limit = self._config.consistency_px
            before = optical_flow.consistency(there, back, limit).mean()
            if optical_flow.consistency(searched, returned, limit).mean() >= before:
                there, back = searched, returned
        self._there, self._back = there, back

    def _result(self, past: list[Flows]) -> Tracks:
        assert self._there is not None and self._back is not None
        shape = self._there.shape
        flow = np.zeros((motion.BEFORE, *shape), np.float32)
        weight = np.zeros((motion.BEFORE, *shape[:2]), np.float32)
        for k, (back, there) in enumerate(past):
            flow[k], weight[k] = back, self._weight(back, there)
        return Tracks(
            from_anchor=self._there,
            from_anchor_weight=self._weight(self._there, self._back),
            to_anchor=self._back,
            to_anchor_weight=self._weight(self._back, self._there),
            past=motion.PastFlow(flow, weight),
        )

    def _weight(self, flow: np.ndarray, back: np.ndarray) -> np.ndarray:
        config = self._config
        trusted = optical_flow.consistency(flow, back, config.consistency_px, config.consistency)
        return trusted.astype(np.float32)


def dis_match(config: FlowConfig) -> Match:
    """Returns OpenCV's dense inverse search at the quality of `config`."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    if config.quality == "high":
        search.setFinestScale(0)

    def match(first: np.ndarray, second: np.ndarray, start: Flows | None) -> Flows:
        grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (first, second)]
        starts = (None, None) if start is None else (start[0].copy(), start[1].copy())
        # Typed without None, which means: no flow to start from.
        there = search.calc(grey[0], grey[1], starts[0])  # type: ignore[arg-type]
        back = search.calc(grey[1], grey[0], starts[1])  # type: ignore[arg-type]
        return there, back

    return match


def _source_match(source: FlowSource) -> Match:
    if source.name.startswith("files:"):
        raise UserError(
            "--mode=feedforward finds the flow of each frame as it comes and cannot take it from "
            f"'{source.name}'; use --flow=dis, raft, sea_raft or none."
        )

    def match(first: np.ndarray, second: np.ndarray, start: Flows | None) -> Flows:
        del start
        size = (first.shape[0], first.shape[1])
        two = Frames(
            np.stack([first, second]),
            np.arange(2.0),
            WorkingSize(original=size, resized=size, crop=(0, 0), working=size),
            ("first", "second"),
        )
        there, back = np.asarray(source.directed(two, np.array([[0, 1], [1, 0]])).flow, np.float32)
        return there, back

    return match
