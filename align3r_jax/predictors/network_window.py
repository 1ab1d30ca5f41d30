"""Features of more frames than the device may hold: a window of them, and pairs in its order."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.networks.frame_features import FrameFeatures


def order_for_reuse(pairs: np.ndarray, slots: int) -> np.ndarray:
    """Returns an order of (P, 2) pairs in which `slots` frames at a time serve many of them.

    Frames are cut into blocks of half the slots; pairs come by the blocks of their later and
    earlier frame, the earlier blocks forth and back in turn, so that each step changes one block. A
    graph of near neighbours loads every frame once, the complete one of T frames about
    T^2 / slots times.
    """
    size = max(1, slots // 2)
    late, early = pairs.max(axis=1), pairs.min(axis=1)
    outer, inner = late // size, early // size
    inner = np.where(outer % 2 == 0, -inner, inner)
    return np.lexsort((early, late, inner, outer))


class FeatureWindow:
    """Rows of features on the device, at most `slots` frames, loaded before they are needed.

    features: of all frames, NumPy. batches: (first frames, second frames) of every step. A frame
    leaves when its next use lies farthest ahead. Transfers run while the device computes.
    """

    def __init__(
        self,
        features: FrameFeatures,
        batches: Sequence[tuple[np.ndarray, np.ndarray]],
        slots: int,
    ):
        self.loads = 0  # frames transferred so far
        self._features = features
        self._batches = batches
        self._slots = slots
        self._rows: dict[int, FrameFeatures] = {}
        self._uses: dict[int, list[int]] = {}
        for step, views in reversed(list(enumerate(batches))):
            for frame in {int(f) for view in views for f in view}:
                self._uses.setdefault(frame, []).append(step)  # the next use is the last entry

    def load(self, step: int) -> None:
        """Begins to transfer what a step needs and the device lacks; no step after the last."""
        if step >= len(self._batches):
            return
        needed = {int(frame) for view in self._batches[step] for frame in view}
        missing = sorted(needed - self._rows.keys())
        self._make_room(len(missing), needed, step)
        for frame in missing:
            self._rows[frame] = jax.device_put(self._features.take(frame))
        self.loads += len(missing)

    def views(self, step: int) -> tuple[FrameFeatures, FrameFeatures]:
        """Returns the features of both views of a step, as batches on the device."""
        self.load(step)
        first, second = (
            _stack([self._rows[int(frame)].as_view(view) for frame in frames])
            for view, frames in enumerate(self._batches[step], 1)
        )
        return first, second

    def _make_room(self, wanted: int, needed: set[int], step: int) -> None:
        for uses in self._uses.values():
            while uses and uses[-1] < step:
                uses.pop()
        idle = [frame for frame in self._rows if frame not in needed]
        never = len(self._batches)
        idle.sort(key=lambda frame: self._uses[frame][-1] if self._uses[frame] else never)
        for _ in range(min(len(idle), max(0, len(self._rows) + wanted - self._slots))):
            del self._rows[idle.pop()]


@jax.jit
def _stack(rows: list[FrameFeatures]) -> FrameFeatures:
    return jax.tree.map(lambda *parts: jnp.stack(parts), *rows)
