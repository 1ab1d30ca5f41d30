"""Training checkpoints with Orbax: asynchronous, newest kept, resumable onto other devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from align3r_jax.training.state import TrainState


class Checkpoints:
    """A folder of training states; use as a context manager so that pending writes finish."""

    def __init__(self, folder: Path, keep: int = 2):
        """`folder` is created; the newest `keep` states stay."""
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            Path(folder).absolute(), preservation_policy=policies.LatestN(keep)
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The newest step on disk, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts writing `state`; `meta` holds JSON types (the config, the step)."""
        step = int(state.step)
        if self.latest_step == step:
            return
        self._checkpointer.save_checkpointables_async(step, {"state": state, "meta": meta})

    def restore(self, abstract: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """Returns the newest state, placed by `sharding`."""
        target = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), abstract
        )
        return self._checkpointer.load_checkpointables(None, {"state": target})["state"]
