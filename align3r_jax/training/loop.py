"""The training loop: resume, batches by step number, log lines, checkpoints, time limit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from align3r_jax.errors import UserError
from align3r_jax.structs import Array
from align3r_jax.training import optimizer as optimizer_lib
from align3r_jax.training.checkpoint import Checkpoints
from align3r_jax.training.state import TrainState


def run(
    *,
    init_state: Callable[[], TrainState],
    step: Callable[[TrainState, Any, Array], tuple[TrainState, dict[str, Array]]],
    batch_of: Callable[[int], Any],
    total_steps: int,
    folder: Path,
    config: dict[str, Any],
    sharding: jax.sharding.Sharding,
    seed: int = 0,
    log_every: int = 50,
    save_every: int = 500,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    max_seconds: float = math.inf,
) -> TrainState:
    """Trains from the newest checkpoint of `folder` (or the start) to `total_steps`.

    A run is a function of (config, seed): `batch_of(step)` and the key of a step depend on its
    number alone, so a resumed run continues exactly. `metrics.jsonl` gains one line per
    `log_every` steps. Stops early, checkpointed, after `max_seconds` or on Ctrl-C.
    Raises UserError when the loss is not finite over a whole logging interval.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    key = jax.random.key(seed)
    started = time.monotonic()
    writer = jax.process_index() == 0
    with Checkpoints(folder / "checkpoints") as checkpoints:
        # 1. resume this run, 2. start from the initial state
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(jax.eval_shape(init_state), sharding)
        else:
            state = jax.jit(init_state, out_shardings=sharding)()
        first = int(state.step)
        progress = tqdm(total=total_steps, initial=first, disable=not writer, desc="train")
        recent: list[dict[str, Array]] = []
        try:
            for number in range(first, total_steps):
                state, details = step(state, batch_of(number), jax.random.fold_in(key, number))
                recent.append(details)
                done = number + 1
                progress.update()
                if done % log_every == 0 or done == total_steps:
                    line = _mean(recent) | {"step": done}
                    line["skipped"] = optimizer_lib.skipped_updates(state.opt_state)
                    line["seconds"] = round(time.monotonic() - started, 1)
                    recent = []
                    if not math.isfinite(line["loss"]):
                        raise UserError(
                            f"The loss is {line['loss']} at step {done}; lower config.lr or check "
                            f"the data. The newest good state is in {folder / 'checkpoints'}."
                        )
                    if evaluate and evaluate_every and done % evaluate_every == 0:
                        line |= {f"eval_{k}": v for k, v in evaluate(state.average).items()}
                    progress.set_postfix(loss=f"{line['loss']:.4f}")
                    if writer:
                        _append(folder / "metrics.jsonl", line)
                if done % save_every == 0:
                    checkpoints.save(state, {"step": done, "config": config})
                if time.monotonic() - started > max_seconds:
                    break
        except KeyboardInterrupt:
            progress.write("Interrupted; saving the state. The same command resumes.")
        finally:
            progress.close()
        checkpoints.save(state, {"step": int(state.step), "config": config})
    return state


def _mean(details: list[dict[str, Array]]) -> dict[str, float]:
    host = jax.device_get(details)
    return {name: float(np.mean([d[name] for d in host])) for name in host[0]}


def _append(path: Path, line: dict[str, Any]) -> None:
    rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}
    with path.open("a") as file:
        file.write(json.dumps(rounded) + "\n")
