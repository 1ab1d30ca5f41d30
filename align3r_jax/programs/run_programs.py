"""Runs programs that were compiled ahead of time; needs jax (with flatbuffers) and NumPy alone.

    import run_programs                                # this file lies beside the programs
    programs = run_programs.load("deployed")
    features = programs.encode(images)                 # (T, H, W, 3) uint8, any T
    pairs = programs.pairs(len(images))                # (P, 2) frame numbers
    predictions = programs.decode(features, pairs)     # point maps (P, H, W, 3), confidences
    scene = programs.align(predictions, len(images))   # depth, cameras, masks

It is the loader of align3r_jax, but imports nothing of it. Arrays are NumPy, on the host.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

FORMAT = "align3r_jax programs, version 1"
MANIFEST, PARAMETERS, SUFFIX = "manifest.json", "parameters.safetensors", ".jaxexport"
Arrays = dict[str, np.ndarray]

_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "F64": np.float64}
_BACKENDS = {"gpu": ("cuda", "rocm")}  # what JAX calls a GPU -> what programs call it


class ProgramError(ValueError):
    """Files or inputs that cannot be run: what was got, what was expected, what to do."""


class Programs:
    """The programs of a folder. manifest: sizes, inputs, settings and where the weights come from.

    batch: frames and pairs of one call; every value is compiled once for itself. None: that of
    the manifest. The last batch is filled up.
    """

    def __init__(
        self, manifest: dict[str, Any], calls: dict[str, Any], params: Any, batch: int | None = None
    ):
        self.manifest = manifest
        self._calls, self._params = calls, params
        self._batch = batch or manifest["batch"]
        if self._batch < 1:
            raise ProgramError(f"A batch of {batch}: expected at least 1.")

    def encode(self, images: Any, prior_maps: Any = None, has_prior: Any = None) -> Arrays:
        """Returns the features of frames, name -> (T, ...).

        images: (T, H, W, 3) uint8 RGB. prior_maps: (T, H, W, 3) float32 of the depth prior
        ("ray": points in the camera frame, NaN where missing; "minmax": points scaled to [0, 1]),
        as the manifest's network.config.prior_encoding says. has_prior: (T,) bool; None: all.
        """
        images = np.asarray(images)
        height, width = self.manifest["size"]
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3) or not len(images):
            raise ProgramError(
                f"Frames are {images.dtype} of shape {images.shape}, expected uint8 of shape "
                f"(T, {height}, {width}, 3): resize them, or export programs for their size."
            )
        inputs = {"images": images}
        if "prior_maps" in self._inputs("encode")[1]:
            is_ray = self.manifest["network"]["config"]["prior_encoding"] == "ray"
            if prior_maps is None:
                prior_maps = np.full(images.shape, np.nan if is_ray else 0, np.float32)
                has_prior = np.zeros(len(images), bool)
            inputs["prior_maps"] = np.asarray(prior_maps, np.float32)
            every = np.ones(len(images), bool)
            inputs["has_prior"] = every if has_prior is None else np.asarray(has_prior, bool)
            if inputs["prior_maps"].shape != images.shape:
                raise ProgramError(
                    f"prior_maps are {inputs['prior_maps'].shape}, expected the frames' shape "
                    f"{images.shape}."
                )
        elif prior_maps is not None:
            raise ProgramError("This network reads no depth prior; pass prior_maps=None.")
        return self._in_batches(len(images), lambda part: self._call("encode", _take(inputs, part)))

    def decode(self, features: Arrays, pairs: Any) -> Arrays:
        """Returns pointmap1, pointmap2 (P, H, W, 3) in the camera of each pair's first frame, and
        confidence1, confidence2 (P, H, W). features: of `encode`. pairs: (P, 2) frame numbers.
        """
        pairs = np.asarray(pairs)
        frames = len(features["tokens"])
        if pairs.ndim != 2 or not len(pairs) or pairs.min() < 0 or pairs.max() >= frames:
            raise ProgramError(f"Expected pairs (P, 2) of the {frames} frames, got {pairs.shape}.")
        return self._in_batches(
            len(pairs),
            lambda part: self._call(
                "decode", *(_take(features, pairs[part, side]) for side in (0, 1))
            ),
        )

    def pairs(self, num_frames: int) -> np.ndarray:
        """Returns (P, 2) int32, the pairs of so many frames that `align` takes, in its order."""
        listed = self._align_facts(num_frames)["pairs"]
        return np.asarray(listed, np.int32)[_within(listed, num_frames)]

    def flow_pairs(self, num_frames: int) -> np.ndarray:
        """Returns (D, 2) int32 (from, to), the fields of optical flow that `align` takes."""
        listed = self._align_facts(num_frames)["flow_pairs"]
        if listed is None:
            raise ProgramError("`align` was exported without optical flow; export it with flow.")
        return np.asarray(listed, np.int32)[_within(listed, num_frames)]

    def align(
        self, predictions: Arrays, num_frames: int, flow: Any = None, flow_weight: Any = None
    ) -> Arrays:
        """Returns the scene: depth, confidence, dynamic_mask (T, H, W), world_from_cam (T, 4, 4)
        (camera x right, y down, z forward; the first is the world), intrinsics (T, 3, 3) pixels,
        pair_losses (P,), loss and rejected (steps,).

        predictions: of `decode(features, pairs(num_frames))`. flow: (D, H, W, 2) pixels of
        `flow_pairs(num_frames)`; flow_weight: (D, H, W) in [0, 1], None: 1.
        """
        facts = self._align_facts(num_frames)
        used = _within(facts["pairs"], num_frames)
        inputs = {
            name: _placed(predictions[name], used, name)
            for name in ("pointmap1", "pointmap2", "confidence1", "confidence2")
        }
        inputs["pairs"] = np.where(used[:, None], np.asarray(facts["pairs"], np.int32), -1)
        inputs["pair_valid"] = used
        inputs["frame_valid"] = np.arange(facts["frames"]) < num_frames
        if (flow is None) != (facts["flow_pairs"] is None):
            raise ProgramError(
                "`align` was exported with optical flow; give the fields of flow_pairs()."
                if flow is None
                else "`align` was exported without optical flow; pass flow=None."
            )
        if flow is not None:
            fields = _within(facts["flow_pairs"], num_frames)
            if flow_weight is None:
                flow_weight = np.ones(np.shape(flow)[:3], np.float32)
            inputs["flow"] = _placed(flow, fields, "flow")
            inputs["flow_weight"] = _placed(flow_weight, fields, "flow_weight")
            listed = np.asarray(facts["flow_pairs"], np.int32)
            inputs["flow_pairs"] = np.where(fields[:, None], listed, -1)
        scene = {name: np.asarray(value) for name, value in self._call("align", inputs).items()}
        for name in ("depth", "confidence", "dynamic_mask", "world_from_cam", "intrinsics"):
            scene[name] = scene[name][:num_frames]
        return scene | {"pair_losses": scene["pair_losses"][used]}

    def _align_facts(self, num_frames: int) -> dict[str, Any]:
        if "align" not in self._calls:
            raise ProgramError("The folder holds no program `align`; export it (--frames).")
        facts = self.manifest["align"]
        if not 2 <= num_frames <= facts["frames"]:
            raise ProgramError(
                f"{num_frames} frames: `align` was exported for 2 to {facts['frames']}; cut the "
                "video into clips, or export it for longer ones."
            )
        return facts

    def _inputs(self, name: str) -> Any:
        if name not in self._calls:
            raise ProgramError(f"The folder holds no program `{name}`; export it (--weights).")
        return self.manifest["programs"][name]["inputs"]

    def _call(self, name: str, *inputs: Any) -> Any:
        self._inputs(name)
        first = () if name == "align" else (self._params,)
        return self._calls[name](*first, *inputs)

    def _in_batches(self, count: int, run: Any) -> Arrays:
        size = self._batch
        padded = np.minimum(np.arange(math.ceil(count / size) * size), count - 1)
        parts, pending = [], None
        for indices in padded.reshape(-1, size):
            running = run(indices)
            if pending is not None:  # fetched while the device works on the next batch
                parts.append(jax.device_get(pending))
            pending = running
        parts.append(jax.device_get(pending))
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def load(folder: str | Path, batch: int | None = None) -> Programs:
    """Returns the programs of a folder, ready to run on JAX's default device.

    Raises ProgramError for files that are missing, damaged, of another platform or beyond the
    releases of JAX that can read them.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ProgramError(f"{folder} holds no readable {MANIFEST}: {error}") from error
    if manifest.get("format") != FORMAT:
        raise ProgramError(
            f"{folder} is of the format {manifest.get('format')!r}, expected {FORMAT!r}; use the "
            "run_programs.py that was written with it."
        )
    backend = jax.default_backend()
    if not set(_BACKENDS.get(backend, (backend,))) & set(manifest["platforms"]):
        raise ProgramError(
            f"The programs were exported for {', '.join(manifest['platforms'])}, this process runs "
            f"on {backend}; export them for it (--platforms)."
        )
    calls = {
        name: _program(folder / f"{name}{SUFFIX}", facts["sha256"], manifest["jax"])
        for name, facts in manifest["programs"].items()
    }
    params = None
    if "parameters_bytes" in manifest:
        params = jax.device_put(read_parameters(folder / PARAMETERS, manifest["parameters_bytes"]))
    return Programs(manifest, calls, params, batch)


def _program(path: Path, checksum: str, written_by: str) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ProgramError(f"{path} cannot be read: {error.strerror or error}.") from error
    if hashlib.sha256(content).hexdigest() != checksum:
        raise ProgramError(f"{path} is damaged (its checksum is another); copy or export it again.")
    try:
        return jax.jit(export.deserialize(bytearray(content)).call)
    except ValueError as error:
        raise ProgramError(
            f"{path} was written by jax {written_by} and cannot be read by jax {jax.__version__} "
            f"({error}); JAX reads programs of about the last six months: export it again."
        ) from error


def read_parameters(path: str | Path, size: int) -> Arrays:
    """Returns name -> array of a .safetensors file of `size` bytes, mapped from disk."""
    path = Path(path)
    if not path.is_file() or path.stat().st_size != size:
        raise ProgramError(f"{path} is missing or not {size} bytes long; copy it again.")
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        values = data[begin:end].view(_TYPES[entry["dtype"]])
        arrays[name] = values.reshape(entry["shape"])
    return arrays


def _take(values: Arrays, rows: np.ndarray) -> Arrays:
    return {name: value[rows] for name, value in values.items()}


def _within(listed: Any, num_frames: int) -> np.ndarray:
    """Which of the listed pairs are of the first frames, (P,) bool."""
    return np.all(np.asarray(listed) < num_frames, axis=1)


def _placed(values: Any, rows: np.ndarray, name: str) -> np.ndarray:
    """The values at the rows that are in use, zeros in the others."""
    values = np.asarray(values, np.float32)
    if len(values) != rows.sum():
        raise ProgramError(f"{name} has {len(values)} rows, expected {rows.sum()}, one per pair.")
    placed = np.zeros((len(rows), *values.shape[1:]), np.float32)
    placed[rows] = values
    return placed
