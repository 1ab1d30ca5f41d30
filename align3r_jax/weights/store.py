"""Saves and loads the parameters of a network: converted folders, official files, shipped ones.

`load` takes any of the three: `load("weights/align3r")` a folder that `save` wrote,
`load("align3r_depthpro.pth")` an official file, `load("align3r_small")` what the package ships;
`load("depth_pro.pt", kind=None)` a network of any kind, see `kinds.py`;
`load("outputs/run")` the work folder of a training, its newest averaged parameters;
`load(folder, sharding=NamedSharding(mesh, PartitionSpec()), dtype="bfloat16")` places and casts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from orbax.checkpoint import v1 as ocp
from safetensors import numpy as safetensors_numpy

from align3r_jax.config import NETWORK_PRESETS, NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.weights import folder as folder_lib
from align3r_jax.weights import kinds, placement, reader, training_folder
from align3r_jax.weights import settings as settings_lib
from align3r_jax.weights.kinds import PAIRWISE
from align3r_jax.weights.placement import Params, Shardings

_SETTINGS = "settings"  # kind of shipped networks that only their own code understands


@dataclasses.dataclass(frozen=True)
class LoadedNetwork:
    """A network ready to run.

    config: its settings, NetworkConfig for a pairwise one. params: nested dictionary of arrays.
    name: the folder, file or shipped network. checksum: identifies settings and values as stored
    (before any change of type). meta: where they came from. kind: a name of `kinds.KINDS`.
    """

    config: Any
    params: dict[str, Any]
    name: str
    checksum: str
    meta: dict[str, Any]
    kind: str = PAIRWISE


def save(
    directory: str | Path,
    params: Params,
    config: Any,
    meta: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> str:
    """Writes an Orbax checkpoint with `config.json`; returns the checksum.

    The folder appears complete or not at all. `meta` holds JSON types. To be called by one process
    that can see all of `params`. Raises UserError if `directory` exists (`overwrite` replaces
    earlier weights) or `params` are not those of `config`.
    """
    _check_tree(params, config, str(directory))
    network, kind = settings_lib.encode_network(config), kinds.of_config(config).name
    return _write(Path(directory), params, kind, network, meta, overwrite, packed=False)


def save_shipped(directory: str | Path, params: Params, config: Any) -> str:
    """Writes float16 parameters as one small file with `config.json`; returns the checksum.

    config: a NetworkConfig, or the dictionary of settings of another kind of network, which
    `load_shipped` gives back. Replaces earlier weights in `directory`.
    """
    kind, network = _SETTINGS, config
    if isinstance(config, NetworkConfig):
        _check_tree(params, config, str(directory))
        kind, network = PAIRWISE, settings_lib.encode_network(config)
    params = jax.tree.map(lambda x: placement.cast(np.asarray(x), "float16"), dict(params))
    _refuse_non_finite(params)
    return _write(Path(directory), params, kind, dict(network), None, overwrite=True, packed=True)


def load(
    source: str | Path,
    *,
    kind: str | Sequence[str] | None = PAIRWISE,
    sharding: Shardings | None = None,
    dtype: Any = None,
    initialise_missing: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> LoadedNetwork:
    """Returns a network from a converted folder, an official file, a shipped name, or a training.

    Of the work folder of a training the newest checkpoint counts; one may also be named.

    kind: what it may be, names of `kinds.KINDS`; None accepts every kind. sharding: where the
    parameters go (None: the default device); converted folders are read straight into it, each
    device its part. dtype: float32, bfloat16 or float16 for all floating parameters; None keeps the
    stored type (float16, a storage format here, becomes float32).
    initialise_missing: files of an earlier stage of training (CroCo v2) get new heads.
    arguments: settings that an official file does not tell (max_depth of a metric network).
    Raises UserError when there is nothing usable, when it is of another kind, or when what was
    stored is damaged.
    """
    path = _locate(source)
    dtype = None if dtype is None else placement.known_dtype(dtype)
    if path.is_dir() and folder_lib.is_weights(path):
        return _load_folder(path, kind, sharding, dtype)
    checkpoint = training_folder.find(path)
    if checkpoint is not None:
        return _load_training(path, checkpoint, kind, sharding, dtype)
    weights = reader.read_weights(path, kind, arguments)
    headless = weights.kind.name == PAIRWISE and not any(
        "downstream_head" in name for name in weights.state
    )
    initial, meta = None, dict[str, Any](source=weights.source)
    if initialise_missing:
        initial = weights.kind.network_module.init_params(weights.config, jax.random.key(0))
        if headless:
            meta["initialised"] = ["head1", "head2"]
    elif headless:
        raise UserError(
            f"{path.name} has no heads: these are weights of CroCo's pre-training, which predict "
            "no point maps. To start a training from them, convert with --initialise_missing."
        )
    params = weights.kind.table_module.import_state(weights.state, weights.config, initial)
    described = folder_lib.describe(_flatten(params))
    return LoadedNetwork(
        weights.config,
        placement.place(params, sharding, dtype),
        path.stem if path.is_file() else path.name,
        folder_lib.checksum(settings_lib.encode_network(weights.config), described),
        meta,
        weights.kind.name,
    )


def stored_checksum(source: str | Path) -> str | None:
    """Returns the checksum of a converted folder or shipped network without reading its values.

    None for an official file: it has to be loaded. Raises UserError as `load`.
    """
    path = _locate(source)
    if not (path.is_dir() and folder_lib.is_weights(path)):
        return None
    return folder_lib.read_manifest(path)["checksum"]


def load_shipped(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (float32 parameters, settings) of a network of any kind that comes with the package.

    Raises UserError if this installation has no such network.
    """
    path = _find_shipped(name)
    manifest = folder_lib.read_manifest(path)
    return placement.restore(path, manifest, None, "float32"), manifest["network"]


def shipped_checksum(name: str) -> str:
    """Returns the checksum of a network that comes with the package, as `load_shipped` reads it.

    Raises UserError if this installation has no such network.
    """
    return folder_lib.read_manifest(_find_shipped(name))["checksum"]


def export(params: Params, config: Any, path: str | Path, *, overwrite: bool = False) -> Path:
    """Writes a `.safetensors` file with the names and layouts of the reference implementation.

    It holds the configuration too, so `load` reads it back to the same parameters. Raises
    UserError if `path` exists without `overwrite`, or `params` are not those of `config`.
    """
    path = Path(path)
    check_export(path, overwrite)
    params = jax.tree.map(np.asarray, dict(params))
    state = kinds.of_config(config).table_module.export_state(params, config)
    text = json.dumps(settings_lib.encode_network(config))
    size = sum(array.nbytes for array in state.values())
    with folder_lib.written_at_once(path, size) as hidden:
        # One entry only: the library writes several in random order, and equal weights should
        # give equal files.
        safetensors_numpy.save_file(state, hidden, metadata={reader.CONFIG_ENTRY: text})
    return path


def check_export(path: Path, overwrite: bool) -> None:
    """Raises UserError if `export` may not write to `path`: call it before the work."""
    if path.suffix != ".safetensors":
        raise UserError(f"The output {path} should be a file named *.safetensors.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise UserError(f"The output {path} exists; name another one or pass --overwrite.")


# ---- places


def _locate(source: str | Path) -> Path:
    path = Path(source)
    if path.exists():
        return path
    shipped = _shipped_folder(str(source))
    if shipped is not None:
        return shipped
    if str(source) in NETWORK_PRESETS:
        raise UserError(
            f"The weights of '{source}' do not come with this installation (it has "
            f"{_shipped_names()}). Download the official file, mind its licence (docs/weights.md), "
            "and give its path."
        )
    raise UserError(
        f"There are no weights at {source}: expected a converted folder, an official .pth or "
        ".safetensors file, a hub folder, the work folder of a training, or the name of a shipped "
        f"network ({_shipped_names()})."
    )


def _shipped_folder(name: str) -> Path | None:
    path = Path(str(resources.files("align3r_jax.weights"))) / "shipped" / name
    return path if Path(name).name == name and folder_lib.is_weights(path) else None


def _find_shipped(name: str) -> Path:
    path = _shipped_folder(name)
    if path is None:
        raise UserError(f"This installation has no network '{name}'; it has {_shipped_names()}.")
    return path


def _shipped_names() -> str:
    root = Path(str(resources.files("align3r_jax.weights"))) / "shipped"
    names = sorted(path.parent.name for path in root.glob(f"*/{folder_lib.CONFIG_FILE}"))
    return ", ".join(names) or "none"


# ---- writing


def _write(
    directory: Path,
    params: Params,
    kind: str,
    network: dict[str, Any],
    meta: Mapping[str, Any] | None,
    overwrite: bool,
    packed: bool,
) -> str:
    folder_lib.check_output(directory, overwrite)
    flat = _flatten(params)
    parameters = folder_lib.describe(flat)
    checksum = folder_lib.checksum(network, parameters)
    manifest = {
        "kind": kind,
        "network": network,
        "checksum": checksum,
        "parameter_count": sum(array.size for array in flat.values()),
        "meta": dict(meta or {}),
        "parameters": parameters,
    }
    size = sum(array.nbytes for array in flat.values())
    with folder_lib.written_at_once(directory, size) as hidden:
        hidden.mkdir()
        if packed:
            # Not `save_file`, whose files nobody but their owner may read.
            (hidden / folder_lib.PACKED_FILE).write_bytes(safetensors_numpy.save(flat))
        else:
            tree = traverse_util.unflatten_dict(flat, sep="/")
            ocp.save_checkpointables(
                (hidden / folder_lib.CHECKPOINT).absolute(), {placement.CHECKPOINTABLE: tree}
            )
        folder_lib.write_manifest(hidden, manifest)
    return checksum


def _flatten(params: Params) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    return {path: np.asarray(leaf, order="C") for path, leaf in sorted(flat.items())}


def _check_tree(params: Params, config: Any, place: str) -> None:
    """Refuses parameters of another network, and parameters that are not finite."""
    _compare({path: list(np.shape(leaf)) for path, leaf in _flatten(params).items()}, config, place)
    _refuse_non_finite(params)


def _compare(shapes: Mapping[str, list[int]], config: Any, place: str) -> None:
    expected = _expected_shapes(config)
    wrong = [
        f"{path} is {tuple(shapes[path]) if path in shapes else 'missing'}, expected "
        f"{expected.get(path, 'no such parameter')}"
        for path in sorted(set(shapes) | set(expected))
        if path not in shapes or expected.get(path) != tuple(shapes[path])
    ]
    if wrong:
        raise UserError(
            f"The parameters for {place} are not those of its configuration: {len(wrong)} differ: "
            f"{'; '.join(wrong[:8])}."
        )


@functools.lru_cache(maxsize=8)  # tracing a network takes a second
def _expected_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    abstract = kinds.of_config(config).network_module.abstract_params(config)
    flat = traverse_util.flatten_dict(abstract, sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _refuse_non_finite(params: Params) -> None:
    broken = [path for path, array in _flatten(params).items() if not np.isfinite(array).all()]
    if broken:
        raise UserError(
            f"{len(broken)} parameters hold NaN or infinite numbers, so they were not written: "
            f"{', '.join(broken[:8])}."
        )


# ---- reading


def _load_folder(
    path: Path, wanted: str | Sequence[str] | None, sharding: Shardings | None, dtype: str | None
) -> LoadedNetwork:
    manifest = folder_lib.read_manifest(path)
    if manifest["kind"] == _SETTINGS:
        raise UserError(
            f"{path} holds weights of another kind of network (a shipped one, chosen by its name "
            "only)."
        )
    kind = kinds.get(manifest["kind"])
    kinds.check_wanted(kind, wanted, str(path))
    config = settings_lib.decode_network(manifest["network"], str(path), kind)
    _compare({k: v[1] for k, v in manifest["parameters"].items()}, config, str(path))
    return LoadedNetwork(
        config,
        placement.restore(path, manifest, sharding, dtype),
        path.name,
        manifest["checksum"],
        manifest["meta"],
        kind.name,
    )


def _load_training(
    path: Path,
    checkpoint: Path,
    wanted: str | Sequence[str] | None,
    sharding: Shardings | None,
    dtype: str | None,
) -> LoadedNetwork:
    meta = training_folder.read_meta(checkpoint)
    if meta["network"]["kind"] == "croco":
        raise UserError(
            f"{path} is a masked pre-training, whose network predicts no point maps; "
            f"`experiments.train --config.init_from={path}` starts a training from it."
        )
    if meta["network"]["kind"] == _SETTINGS:
        raise UserError(
            f"{path} is the training of a network that is chosen by its name only; export its "
            "weights with `experiments.train --export`."
        )
    kind = kinds.get(meta["network"]["kind"])
    kinds.check_wanted(kind, wanted, str(path))
    config = settings_lib.decode_network(meta["network"]["settings"], str(path), kind)
    abstract = kind.network_module.abstract_params(config)
    params = training_folder.restore_average(checkpoint, abstract)
    described = folder_lib.describe(_flatten(params))
    return LoadedNetwork(
        config,
        placement.place(params, sharding, dtype),
        path.name,
        folder_lib.checksum(settings_lib.encode_network(config), described),
        {"source": str(checkpoint), "step": meta["step"]},
        kind.name,
    )
