"""Runs a network on recorded inputs and compares it with the outputs recorded from PyTorch.

    python -m experiments.verify_weights --weights=DIR --golden=FILE.npz [--tolerance=2e-5]

The recording holds images1, images2 (and prior1, prior2 for Align3R) and any of pts3d_1, conf_1,
pts3d_2, conf_2; docs/weights.md says how to make one. Difference: largest absolute difference over
largest absolute recorded value. Exit code 0: all within the tolerance, 1: not, 2: unusable input.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from align3r_jax.errors import UserError
from align3r_jax.networks import align3r
from align3r_jax.weights import store
from align3r_jax.weights.store import LoadedNetwork
from experiments import cli

WEIGHTS = flags.DEFINE_string("weights", None, "a folder, file or shipped name", required=True)
GOLDEN = flags.DEFINE_string("golden", None, "the recording, an .npz file", required=True)
TOLERANCE = flags.DEFINE_float(
    "tolerance", 2e-5, "largest difference allowed, relative to the largest value of an array"
)

IMAGES = ("images1", "images2")
PRIORS = ("prior1", "prior2")
OUTPUTS = ("pts3d_1", "conf_1", "pts3d_2", "conf_2")


def main(argv: Sequence[str]) -> int:
    del argv
    recording = read_recording(Path(GOLDEN.value))
    loaded = store.load(WEIGHTS.value)
    computed = compute(loaded, recording)
    ignored = sorted(set(recording) - set(IMAGES + PRIORS + OUTPUTS))
    if ignored:
        print(f"Not used: {', '.join(ignored)}.")
    print(f"{loaded.name} on {GOLDEN.value}, checksum {loaded.checksum[:16]}")
    print(f"{'array':8} {'shape':>18} {'largest value':>14} {'difference':>11} {'mean':>9}")
    passed = True
    for name in OUTPUTS:
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
        good = largest <= TOLERANCE.value  # False also for NaN
        passed &= good
        print(
            f"{name:8} {str(expected.shape):>18} {scale:14.4f} {largest:11.2e} "
            f"{difference.mean() / scale:9.1e} {'ok' if good else 'ABOVE THE TOLERANCE'}"
        )
    print(f"{'All within' if passed else 'Not within'} the tolerance of {TOLERANCE.value:g}.")
    return 0 if passed else 1


def read_recording(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a recording, images as (B, H, W, 3); UserError if it is unusable."""
    try:
        with np.load(path, allow_pickle=False) as file:
            recording = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"There is no recording {path}.") from None
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no readable .npz file ({error}).") from error
    absent = [name for name in IMAGES if name not in recording]
    if absent or not any(name in recording for name in OUTPUTS):
        raise UserError(
            f"{path} should hold {', '.join(IMAGES)} and at least one of {', '.join(OUTPUTS)}; it "
            f"holds {', '.join(recording) or 'nothing'} (docs/weights.md)."
        )
    for name in IMAGES + PRIORS:
        if name in recording:
            recording[name] = _channels_last(recording[name], name)
    return recording


def _channels_last(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 4 and array.shape[1] == 3 and array.shape[-1] != 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] != 3 or not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"{name} is {array.dtype} {array.shape}; expected floating point (B, H, W, 3) or "
            "(B, 3, H, W), as the network gets it (images in [-1, 1])."
        )
    return array.astype(np.float32)


def compute(loaded: LoadedNetwork, recording: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the outputs of the network on the inputs, one pair at a time, float32."""
    names = list(IMAGES)
    if loaded.config.prior_branch:
        names += PRIORS
        absent = [name for name in PRIORS if name not in recording]
        if absent:
            raise UserError(
                f"{loaded.name} has a prior branch, but the recording lacks {', '.join(absent)}."
            )
    count = len(recording["images1"])
    if any(len(recording[name]) != count for name in names):
        raise UserError(f"{', '.join(names)} should hold equally many items.")
    network = align3r.Align3R(loaded.config, precision="highest")
    run = jax.jit(lambda params, *inputs: network.apply({"params": params}, *inputs))
    pairs = []
    for item in range(count):
        inputs = [jnp.asarray(recording[name][item : item + 1]) for name in names]
        output = run(loaded.params, *inputs)
        pairs.append((output.pointmap1, output.confidence1, output.pointmap2, output.confidence2))
    return {name: np.concatenate(arrays) for name, arrays in zip(OUTPUTS, zip(*pairs))}


if __name__ == "__main__":
    cli.run(main)
