"""Programs compiled ahead of time: files that run without the Python code that describes them.

    export_programs("deployed", network, Settings(height=288, width=512, frames=16))

writes `encode`, `decode` and `align` as StableHLO (`jax.export`), the network's parameters, a
manifest, and `run_programs.py`, which loads and runs them with jax and NumPy alone. Programs take
and return dictionaries of arrays. The number of frames or pairs of a call of `encode` and `decode`
is free; image size and the longest clip of `align` are fixed.

The files are read by the JAX releases of about the next six months (JAX's compatibility rules): a
form to deploy, not one to archive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export
from safetensors import numpy as safetensors_numpy

from align3r_jax import config as config_lib
from align3r_jax import pairing
from align3r_jax.alignment import batch, initialise, solve
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.config import AlignmentConfig, NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.geometry import rigid
from align3r_jax.io import atomic
from align3r_jax.predictors import network_programs
from align3r_jax.programs import run_programs
from align3r_jax.structs import AlignmentPriors, OpticalFlow, PairGraph, PairPredictions
from align3r_jax.weights.kinds import PAIRWISE
from align3r_jax.weights.store import LoadedNetwork

Arrays = dict[str, jax.Array]
PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the programs are made for.

    height, width: of the frames. batch: frames and pairs that `run_programs` gives a call by
    default. frames: of the longest clip of `align`, rounded up to a bucket (`alignment.batch`);
    0: no such program. flow: whether `align` takes optical flow. precision: of float32 products of
    the network on accelerators; None: the device's default.
    """

    height: int
    width: int
    batch: int = 4
    compute_dtype: str = "float32"
    precision: str | None = None
    frames: int = 0
    graph: str = config_lib.PairConfig.graph
    flow: bool = False
    alignment: AlignmentConfig = AlignmentConfig(solver="gauss_newton")
    platforms: tuple[str, ...] = PLATFORMS

    def __post_init__(self) -> None:
        if self.height < 16 or self.width < 16 or self.height % 16 or self.width % 16:
            raise UserError(
                f"Programs for frames of {self.width}x{self.height}: both sides must be multiples "
                "of 16, the working size that `align3r_jax.read_frames` gives."
            )
        strange = [name for name in self.platforms if name not in _KNOWN_PLATFORMS]
        if strange or not self.platforms:
            raise UserError(
                f"Platforms {', '.join(self.platforms) or 'none'}: expected some of "
                f"{', '.join(_KNOWN_PLATFORMS)}."
            )
        if self.batch < 1 or self.frames < 0 or self.frames == 1:
            raise UserError(
                f"A batch of {self.batch} and clips of {self.frames} frames: expected a batch of "
                "at least 1 and clips of at least 2 frames (0: no alignment)."
            )


def export_programs(
    folder: str | Path,
    network: LoadedNetwork | None,
    settings: Settings,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the programs into a new folder, whole or not at all; returns the manifest.

    network: None leaves out `encode` and `decode`. Raises UserError if there is nothing to export
    or the folder exists already.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise UserError(f"{folder} exists; name a new folder, or overwrite it (--overwrite).")
    if network is None and not settings.frames:
        raise UserError(
            "Nothing to export: give a network (--weights) for encode and decode, or the longest "
            "clip (--frames) for align."
        )
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "Exporting needs flatbuffers, which JAX does not bring: pip install flatbuffers."
        )
    manifest: dict[str, Any] = {
        "format": run_programs.FORMAT,
        "jax": jax.__version__,
        "platforms": list(settings.platforms),
        "size": [settings.height, settings.width],
        "batch": settings.batch,
    }
    programs: dict[str, export.Exported] = {}
    if network is not None:
        programs |= _network_programs(network, settings)
        manifest["network"] = {
            "name": network.name,
            "checksum": network.checksum,
            "config": config_lib.to_dict(network.config),
            "compute_dtype": settings.compute_dtype,
            "precision": settings.precision,
        }
    if settings.frames:
        graph = _graph(settings)
        programs["align"] = _exported(align_program(settings), settings, align_inputs(settings))
        manifest["align"] = {
            "frames": graph.num_frames,
            "graph": settings.graph,
            "pairs": graph.pairs.tolist(),
            "flow_pairs": pairing.directed_pairs(graph).tolist() if settings.flow else None,
            "config": config_lib.to_dict(settings.alignment),
        }
    with atomic.new_folder(folder) as hidden:
        if network is not None:
            flat = traverse_util.flatten_dict(network.params, sep="/")
            safetensors_numpy.save_file(
                {name: np.ascontiguousarray(jax.device_get(leaf)) for name, leaf in flat.items()},
                hidden / run_programs.PARAMETERS,
            )
            manifest["parameters_bytes"] = (hidden / run_programs.PARAMETERS).stat().st_size
        manifest["programs"] = {}
        for name, program in programs.items():
            content = bytes(program.serialize())
            (hidden / f"{name}{run_programs.SUFFIX}").write_bytes(content)
            manifest["programs"][name] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "inputs": _described(program.in_tree, program.in_avals)[0],
                "outputs": _described(program.out_tree, program.out_avals),
            }
        (hidden / run_programs.MANIFEST).write_text(json.dumps(manifest))
        shutil.copyfile(run_programs.__file__, hidden / "run_programs.py")
        if network is not None:  # safetensors keeps its files to their owner
            shutil.copymode(hidden / run_programs.MANIFEST, hidden / run_programs.PARAMETERS)
    return manifest


def _network_programs(network: LoadedNetwork, settings: Settings) -> dict[str, export.Exported]:
    config = network.config
    if network.kind != PAIRWISE or not isinstance(config, NetworkConfig):
        raise UserError(
            f"{network.name} is of the kind {network.kind}; only pairwise networks are exported."
        )
    params = {
        name: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)
        for name, leaf in traverse_util.flatten_dict(network.params, sep="/").items()
    }
    one = settings.compute_dtype, settings.precision
    encode = network_programs.encode_program(config, *one)
    decode = network_programs.decode_program(config, *one)
    structure: Any = None  # of the features, of which the files know only names

    def run_encode(params: Arrays, inputs: Arrays) -> Arrays:
        tree, images = traverse_util.unflatten_dict(params, sep="/"), inputs["images"]
        features = encode(tree, images, inputs.get("prior_maps"), inputs.get("has_prior"))
        nonlocal structure
        structure = jax.tree.structure(features)
        return _by_name(features)

    def run_decode(params: Arrays, first: Arrays, second: Arrays) -> Arrays:
        tree = traverse_util.unflatten_dict(params, sep="/")
        views = (
            jax.tree.unflatten(structure, [v[name] for name in names]) for v in (first, second)
        )
        return _by_name(decode(tree, *views))

    encoded = _exported(run_encode, settings, params, encode_inputs(config, settings))
    avals = jax.tree.unflatten(encoded.out_tree, encoded.out_avals)
    names = list(_by_name(jax.tree.unflatten(structure, range(len(avals)))))
    (batch_size,) = export.symbolic_shape("b")
    views = [
        {
            name: jax.ShapeDtypeStruct((batch_size, *aval.shape[1:]), aval.dtype)
            for name, aval in avals.items()
        }
    ] * 2
    return {"encode": encoded, "decode": _exported(run_decode, settings, params, *views)}


def _by_name(tree: Any) -> Arrays:
    """The arrays of a tree in its order, by their paths."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def encode_inputs(config: NetworkConfig, settings: Settings) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what `encode` takes: images (b, H, W, 3) uint8 and, if the network reads a depth
    prior, prior_maps (b, H, W, 3) and has_prior (b,) bool, of which b is free.
    """
    (batch,) = export.symbolic_shape("b")
    shape = (batch, settings.height, settings.width, 3)
    inputs = {"images": jax.ShapeDtypeStruct(shape, jnp.uint8)}
    if config.prior_branch:
        inputs["prior_maps"] = jax.ShapeDtypeStruct(shape, jnp.float32)
        inputs["has_prior"] = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    return inputs


def align_program(settings: Settings) -> Callable[[Arrays], Arrays]:
    """Returns f(inputs) -> scene, inputs as `align_inputs` says.

    The scene: depth, confidence (T, H, W), world_from_cam (T, 4, 4), the first camera being the
    world, intrinsics (T, 3, 3), dynamic_mask (T, H, W) bool, pair_losses (P,), loss and rejected
    (steps,). Frames and pairs that are not valid change nothing of the others.
    """
    config, graph = settings.alignment, _graph(settings)
    fields = None
    if settings.flow:
        listed = pairing.directed_pairs(graph)
        fields = OpticalFlow(
            listed, np.zeros((len(listed), 1, 1, 2)), np.zeros((len(listed), 1, 1))
        )
    degrees = solve.degrees(graph, AlignmentPriors(flow=fields), config)

    def run(inputs: Arrays) -> Arrays:
        predictions = PairPredictions(
            **{field.name: inputs[field.name] for field in dataclasses.fields(PairPredictions)}
        )
        traced: Any = inputs["pairs"]
        own_graph = PairGraph(traced, graph.num_frames, symmetric=graph.symmetric, name=graph.name)
        flow = None
        if settings.flow:
            flow_pairs: Any = inputs["flow_pairs"]
            flow = OpticalFlow(flow_pairs, inputs["flow"], inputs["flow_weight"])
        priors = AlignmentPriors(
            flow=flow, frame_valid=inputs["frame_valid"], pair_valid=inputs["pair_valid"]
        )
        variables, trace = solve.run(predictions, own_graph, priors, config, degrees=degrees)
        clean = variables_lib.without_invalid(
            variables, inputs["frame_valid"], inputs["pair_valid"]
        )
        geometry = variables_lib.decode(
            clean, config, (settings.height, settings.width), inputs["pair_valid"]
        )
        poses = geometry.world_from_cam
        return {
            "depth": geometry.depth,
            "world_from_cam": rigid.compose(rigid.invert(poses[:1]), poses),
            "intrinsics": geometry.intrinsics,
            "confidence": initialise.frame_confidence(predictions, own_graph),
            "dynamic_mask": trace["dynamic_mask"],
            "pair_losses": trace["pair_losses"],
            "loss": trace["total"],
            "rejected": trace["rejected"],
        }

    return run


def align_inputs(settings: Settings) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what `align` takes: point maps (P, H, W, 3) and confidences (P, H, W) of the pairs
    (P, 2), which of them and of the T frames are valid, and with flow its fields (D, H, W, 2).
    """
    graph, size = _graph(settings), (settings.height, settings.width)
    pairs = graph.num_pairs
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "pointmap1": ((pairs, *size, 3), jnp.float32),
        "pointmap2": ((pairs, *size, 3), jnp.float32),
        "confidence1": ((pairs, *size), jnp.float32),
        "confidence2": ((pairs, *size), jnp.float32),
        "pairs": ((pairs, 2), jnp.int32),
        "pair_valid": ((pairs,), jnp.bool_),
        "frame_valid": ((graph.num_frames,), jnp.bool_),
    }
    if settings.flow:
        fields = len(pairing.directed_pairs(graph))
        shapes["flow"] = ((fields, *size, 2), jnp.float32)
        shapes["flow_weight"] = ((fields, *size), jnp.float32)
        shapes["flow_pairs"] = ((fields, 2), jnp.int32)
    return {name: jax.ShapeDtypeStruct(*entry) for name, entry in shapes.items()}


def _graph(settings: Settings) -> PairGraph:
    return pairing.make_pairs(batch.bucket(settings.frames), settings.graph)


def _exported(run: Callable[..., Any], settings: Settings, *inputs: Any) -> export.Exported:
    return export.export(jax.jit(run), platforms=settings.platforms)(*inputs)


def _described(tree: Any, avals: Sequence[Any]) -> Any:
    """Types and shapes of a program's inputs or outputs as JSON; b is a size that is free."""
    return jax.tree.unflatten(tree, [f"{aval.dtype}{_shape(aval)}" for aval in avals])


def _shape(aval: Any) -> str:
    return f"[{', '.join(str(size) for size in aval.shape)}]"
