"""Curves of training runs, as one picture that any browser shows.

    python -m experiments.plot_training --runs=outputs/small --keys=loss,eval/unseen/loss \
        --output=curves.svg

Reads `metrics.jsonl` of every work folder, also while it is being written. One curve for each key
of each run; --smooth=N draws means of N logged steps. --against=seconds compares runs by time
instead of steps. Prints the last value of every curve. To watch a run: TensorBoard (--logdir=RUN).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from align3r_jax.errors import UserError
from align3r_jax.io import atomic
from align3r_jax.training import metrics
from align3r_jax.viewer import plots
from experiments import cli

RUNS = flags.DEFINE_list("runs", None, "Work folders of experiments.train.", required=True)
KEYS = flags.DEFINE_list("keys", ["loss"], "Names of values in metrics.jsonl.")
SMOOTH = flags.DEFINE_integer(
    "smooth", 1, "Logged steps in a mean, for values logged with every one.", lower_bound=1
)
AGAINST = flags.DEFINE_enum("against", "step", ["step", "seconds"], "What is drawn to the right.")
FROM = flags.DEFINE_integer("from_step", 0, "First step drawn; 0: all are.", lower_bound=0)
OUTPUT = flags.DEFINE_string("output", "training.svg", "The picture, an SVG.")


def curve(
    lines: list[dict[str, Any]], key: str, against: str = "step", smooth: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Returns x (n,), y (n,) of the lines that have the key, means of `smooth` following ones.

    What is left over at the end makes a mean of its own. Seconds of resumed runs are summed.
    """
    if against == "seconds":
        lines = _with_total_seconds(lines)
    known = [(line[against], line[key]) for line in lines if key in line and against in line]
    if not known:
        return np.zeros(0), np.zeros(0)
    x, y = np.array(known, np.float64).T
    starts = np.arange(0, len(x), smooth)
    counts = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _with_total_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`seconds` starts again with every process that goes on."""
    before, last, result = 0.0, 0.0, []
    for line in lines:
        seconds = float(line.get("seconds", last))
        before += last if seconds < last else 0.0
        last = seconds
        result.append({**line, "seconds": before + seconds})
    return result


def main(argv: Sequence[str]) -> None:
    del argv
    if not OUTPUT.value.endswith(".svg"):
        raise UserError(f"--output={OUTPUT.value}: the picture is an SVG; end its name in .svg.")
    curves = []
    for run in RUNS.value:
        record = Path(run) / metrics.RECORD
        lines = [line for line in metrics.read(record) if line["step"] >= FROM.value]
        if not lines:
            raise UserError(
                f"{record} has no logged step from {FROM.value} on; --runs are work folders of "
                "experiments.train."
            )
        for key in KEYS.value:
            x, y = curve(lines, key, AGAINST.value, SMOOTH.value)
            if not np.isfinite(y).any():
                known = ", ".join(sorted({name for line in lines for name in line}))
                raise UserError(f"{record} has no '{key}'; it has {known}.")
            name = " ".join(
                [Path(run).name] * (len(RUNS.value) > 1) + [key] * (len(KEYS.value) > 1)
            )
            style = f"s{len(curves) % plots.NUM_COLOURS + 1}"
            curves.append(plots.Line(name or key, x, y, style))
            print(f"{name or key}: {y[np.isfinite(y)][-1]:.5g} at {AGAINST.value} {x[-1]:g}")
    chart = plots.line_chart(
        curves,
        title="Training",
        x_label=AGAINST.value,
        y_label=KEYS.value[0] if len(KEYS.value) == 1 else "value",
    )
    if not chart:
        raise UserError("No value of these curves is positive; there is nothing to draw.")
    output = Path(OUTPUT.value)
    with atomic.told_to_user(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace_file(output, plots.standalone(chart, curves).encode())
    print(f"Written to {output}")


if __name__ == "__main__":
    cli.run(main)
