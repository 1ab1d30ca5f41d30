"""Runs a network on recorded inputs and compares it with the outputs recorded from PyTorch.

    python -m experiments.verify_weights --weights=DIR --golden=FILE.npz [--tolerance=2e-5]
    python -m experiments.verify_weights --weights=DIR

Any kind of network; `recordings.py` lists what a recording of each holds, docs/weights.md says how
to make one. Difference: largest absolute difference over largest absolute recorded value. Without a
recording only the numbers themselves are checked (finite, repeatable, not constant), on an invented
image. Exit code 0: all well, 1: not, 2: unusable input.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from align3r_jax.errors import UserError
from align3r_jax.weights import store
from align3r_jax.weights.store import LoadedNetwork
from experiments import cli, recordings

WEIGHTS = flags.DEFINE_string("weights", None, "A folder, file or shipped name.", required=True)
GOLDEN = flags.DEFINE_string("golden", None, "The recording, an .npz file; default: a self-check.")
TOLERANCE = flags.DEFINE_float(
    "tolerance", None, "Largest difference allowed, a share of the largest value of an array; "
    "default: 2e-5 for pairwise networks, 1e-4 for others.",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    del argv
    loaded = store.load(WEIGHTS.value, kind=None)
    form = recordings.FORMS[loaded.kind]
    if GOLDEN.value is None:
        return _check_alone(loaded, form)
    recording = recordings.read(Path(GOLDEN.value), form)
    computed = recordings.compute(loaded, recording, form)
    used = {*form.inputs, *form.optional, *form.outputs, recordings.ITERATIONS}
    ignored = sorted(set(recording) - used)
    if ignored:
        print(f"Not used: {', '.join(ignored)}.")
    tolerance = form.tolerance if TOLERANCE.value is None else TOLERANCE.value
    print(f"{loaded.name} ({loaded.kind}) on {GOLDEN.value}, checksum {loaded.checksum[:16]}")
    print(f"{'array':13} {'shape':>18} {'largest value':>14} {'difference':>11} {'mean':>9}")
    passed = True
    for name in form.outputs:
        if name not in recording:
            continue
        expected = recording[name].astype(np.float64)
        if computed[name].shape != expected.shape:
            raise UserError(
                f"{name} was recorded as {expected.shape}, the network gives "
                f"{computed[name].shape}; record the outputs of exactly these inputs."
            )
        difference = np.abs(computed[name] - expected)
        scale = np.abs(expected).max()
        largest = float(difference.max() / scale)
        good = largest <= tolerance  # False also for NaN
        passed &= good
        print(
            f"{name:13} {str(expected.shape):>18} {scale:14.4f} {largest:11.2e} "
            f"{difference.mean() / scale:9.1e} {'ok' if good else 'ABOVE THE TOLERANCE'}"
        )
    print(f"{'All within' if passed else 'Not within'} the tolerance of {tolerance:g}.")
    return 0 if passed else 1


def _check_alone(loaded: LoadedNetwork, form: recordings.Form) -> int:
    print(f"{loaded.name} ({loaded.kind}), checksum {loaded.checksum[:16]}, on an invented image")
    print(f"{'array':13} {'shape':>18} {'smallest':>11} {'largest':>11}")
    passed = True
    for name, values, fault in recordings.faults(loaded, form):
        passed &= not fault
        print(
            f"{name:13} {str(values.shape):>18} {values.min():11.4g} {values.max():11.4g} "
            f"{fault or 'ok'}"
        )
    print(
        "The numbers are sound; whether they are right only a recording tells (--golden)."
        if passed
        else "These weights give no usable numbers."
    )
    return 0 if passed else 1


if __name__ == "__main__":
    cli.run(main)
