"""Recordings: inputs and outputs of a network as its PyTorch version gave them, in one `.npz`.

| kind | inputs | outputs |
|---|---|---|
| pairwise | `images1`, `images2` in [-1, 1], `prior1`, `prior2` | `pts3d_1`, `conf_1`, `..._2` |
| depth_anything | `images`, normalised by mean and deviation | `depth` |
| depth_pro | `images` in [-1, 1], 1536 x 1536 | `inverse_depth`, `field_of_view` |
| raft, sea_raft | `images1`, `images2` in [0, 255], `iterations` | `flow`; sea_raft: `info` |

Images, priors and `info` are (B, H, W, C) or (B, C, H, W); maps (B, H, W) or (B, 1, H, W).
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.weights.store import LoadedNetwork

Arrays = dict[str, np.ndarray]
ITERATIONS = "iterations"


@dataclasses.dataclass(frozen=True)
class Form:
    """What a recording of one kind holds. outputs: name -> channels, None for maps and numbers.

    optional: inputs that may be absent. size: of the images of a self-check. span: their range.
    tolerance: difference that float32 explains, relative to the largest value.
    """

    inputs: tuple[str, ...]
    outputs: dict[str, int | None]
    optional: tuple[str, ...] = ()
    size: tuple[int, int] = (64, 96)
    span: tuple[float, float] = (-1.0, 1.0)
    tolerance: float = 1e-4


_FLOW = {"inputs": ("images1", "images2"), "size": (128, 160), "span": (0.0, 255.0)}
FORMS: dict[str, Form] = {
    "pairwise": Form(
        ("images1", "images2"),
        {"pts3d_1": 3, "conf_1": None, "pts3d_2": 3, "conf_2": None},
        optional=("prior1", "prior2"), tolerance=2e-5,
    ),
    "depth_anything": Form(("images",), {"depth": None}, size=(56, 70), span=(-2.0, 2.0)),
    "depth_pro": Form(("images",), {"inverse_depth": None, "field_of_view": None}),
    "raft": Form(**_FLOW, outputs={"flow": 2}),
    "sea_raft": Form(**_FLOW, outputs={"flow": 2, "info": 4}),
}  # fmt: skip


def read(path: Path, form: Form) -> Arrays:
    """Returns the arrays of a recording, channels last, one item axis first.

    Raises UserError if the file is unreadable, or inputs or all outputs are missing.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            recording = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"There is no recording {path}.") from None
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no readable .npz file ({error}).") from error
    absent = [name for name in form.inputs if name not in recording]
    if absent or not any(name in recording for name in form.outputs):
        raise UserError(
            f"{path} should hold {', '.join(form.inputs)} and at least one of "
            f"{', '.join(form.outputs)}; it holds {', '.join(recording) or 'nothing'} "
            "(docs/weights.md)."
        )
    for name in (*form.inputs, *form.optional):
        if name in recording:
            recording[name] = _images(recording[name], name)
    for name, channels in form.outputs.items():
        if name in recording:
            recording[name] = _output(recording[name], channels)
    return recording


def _images(array: np.ndarray, name: str) -> np.ndarray:
    array = _channels_last(array, 3)
    if array.ndim != 4 or array.shape[-1] != 3 or not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"{name} is {array.dtype} {array.shape}; expected floating point (B, H, W, 3) or "
            "(B, 3, H, W), as the network gets it."
        )
    return array.astype(np.float32)


def _channels_last(array: np.ndarray, channels: int) -> np.ndarray:
    if array.ndim == 4 and array.shape[1] == channels and array.shape[-1] != channels:
        return array.transpose(0, 2, 3, 1)
    return array


def _output(array: np.ndarray, channels: int | None) -> np.ndarray:
    if channels is not None:
        return _channels_last(array, channels)
    if array.ndim == 4 and array.shape[1] == 1:
        return array[:, 0]
    return array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array


def invented(loaded: LoadedNetwork, form: Form, seed: int = 0) -> Arrays:
    """Returns smooth random inputs of one item, for a check without a recording."""
    size = form.size
    if loaded.kind == "depth_pro":
        size = (loaded.config.image_size,) * 2
    rng = np.random.default_rng(seed)
    low, high = form.span
    coarse = rng.uniform(low, high, (1, *(-(-side // 16) for side in size), 3))
    image = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, : size[0], : size[1]]
    inputs = {name: np.roll(image, 3 * k, axis=2) for k, name in enumerate(form.inputs)}
    inputs |= dict.fromkeys(form.optional, (image - low) / (high - low))
    return {name: array.astype(np.float32) for name, array in inputs.items()}


def compute(loaded: LoadedNetwork, recording: Arrays, form: Form) -> Arrays:
    """Returns the outputs on the inputs of a recording, float32, one item at a time.

    Raises UserError if the network needs an input that the recording lacks, or counts differ.
    """
    names = list(form.inputs)
    if loaded.kind == "pairwise" and loaded.config.prior_branch:
        names += form.optional
        absent = [name for name in form.optional if name not in recording]
        if absent:
            raise UserError(
                f"{loaded.name} has a prior branch, but the recording lacks {', '.join(absent)}."
            )
    count = len(recording[names[0]])
    if any(len(recording[name]) != count for name in names):
        raise UserError(f"{', '.join(names)} should hold equally many items.")
    iterations = recording.get(ITERATIONS)
    apply = jax.jit(_function(loaded, None if iterations is None else int(np.ravel(iterations)[0])))
    items = []
    for item in range(count):
        inputs = [jnp.asarray(recording[name][item : item + 1]) for name in names]
        items.append(jax.device_get(apply(loaded.params, *inputs)))
    return {name: np.concatenate(parts) for name, parts in zip(form.outputs, zip(*items))}


def _function(loaded: LoadedNetwork, iterations: int | None) -> Callable[..., tuple[Any, ...]]:
    """(parameters, inputs) -> outputs in the order of the form, with exact products."""
    config = loaded.config
    if loaded.kind == "pairwise":
        from align3r_jax.networks import align3r

        def pair(params: Any, *inputs: Any) -> tuple[Any, ...]:
            network = align3r.Align3R(config, precision="highest")
            out: Any = network.apply({"params": params}, *inputs)
            return out.pointmap1, out.confidence1, out.pointmap2, out.confidence2

        return pair
    if loaded.kind == "depth_anything":
        from align3r_jax.networks import depth_anything

        def relative(params: Any, images: Any) -> tuple[Any, ...]:
            network = depth_anything.DepthAnything(config, precision="highest")
            out: Any = network.apply({"params": params}, images)
            return (out.depth,)

        return relative
    if loaded.kind == "depth_pro":
        from align3r_jax.networks import depth_pro

        def metric(params: Any, images: Any) -> tuple[Any, ...]:
            network = depth_pro.DepthPro(config, precision="highest")
            out: Any = network.apply({"params": params}, images)
            return out.inverse_depth, out.fov

        return metric
    from align3r_jax.networks.raft import build

    def flow(params: Any, images1: Any, images2: Any) -> tuple[Any, ...]:
        network = build.make(config, precision="highest")
        out: Any = network.apply({"params": params}, images1, images2, iterations)
        return (out.flow,) if out.info is None else (out.flow, out.info)

    return flow


def faults(loaded: LoadedNetwork, form: Form) -> Iterator[tuple[str, np.ndarray, str]]:
    """Yields (output, values, what is wrong with it or "") of a check without a recording.

    Outputs must be finite, the same when computed again, not constant over the image, and others
    for another image.
    """
    first, other = (invented(loaded, form, seed) for seed in (0, 1))
    outputs, again, moved = (compute(loaded, inputs, form) for inputs in (first, first, other))
    for name, values in outputs.items():
        fault = ""
        if not np.isfinite(values).all():
            fault = "NaN OR INFINITE"
        elif not np.array_equal(values, again[name]):
            fault = "CHANGES FROM RUN TO RUN"
        elif values.size > 1 and np.ptp(values) == 0:
            fault = "CONSTANT"
        elif np.array_equal(values, moved[name]):
            fault = "THE SAME FOR ANOTHER IMAGE"
        yield name, values, fault
