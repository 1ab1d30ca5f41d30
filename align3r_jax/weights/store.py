"""Saves and loads the parameters of a network: converted folders, official files, shipped ones.

`load` takes any of the three: `load("weights/align3r")` a folder that `save` wrote,
`load("align3r_depthpro.pth")` an official file, `load("align3r_small")` what the package ships;
`load(folder, sharding=NamedSharding(mesh, PartitionSpec()), dtype="bfloat16")` places and casts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util
from orbax.checkpoint import v1 as ocp
from safetensors import numpy as safetensors_numpy

from align3r_jax.config import NETWORK_PRESETS, NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r
from align3r_jax.weights import folder as folder_lib
from align3r_jax.weights import reader
from align3r_jax.weights import settings as settings_lib
from align3r_jax.weights.tables import align3r as table

Params = Mapping[str, Any]
# One sharding for all parameters, or a function from the abstract tree to a tree of shardings.
Shardings = jax.sharding.Sharding | Callable[[Params], Any]
_DTYPES = ("float32", "bfloat16", "float16")
_PAIRWISE = "pairwise"
_CHECKPOINTABLE = "params"


@dataclasses.dataclass(frozen=True)
class LoadedNetwork:
    """A pairwise network ready to run.

    params: nested dictionary of arrays. name: the folder, file or shipped network. checksum:
    identifies settings and values as stored (before any change of type). meta: where they came
    from.
    """

    config: NetworkConfig
    params: dict[str, Any]
    name: str
    checksum: str
    meta: dict[str, Any]


def save(
    directory: str | Path,
    params: Params,
    config: NetworkConfig,
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
    network = settings_lib.encode_network(config)
    return _write(Path(directory), params, _PAIRWISE, network, meta, overwrite, packed=False)


def save_shipped(directory: str | Path, params: Params, config: Any) -> str:
    """Writes float16 parameters as one small file with `config.json`; returns the checksum.

    config: a NetworkConfig, or the dictionary of settings of another kind of network, which
    `load_shipped` gives back. Replaces earlier weights in `directory`.
    """
    kind, network = "settings", config
    if isinstance(config, NetworkConfig):
        _check_tree(params, config, str(directory))
        kind, network = _PAIRWISE, settings_lib.encode_network(config)
    params = jax.tree.map(lambda x: _cast(np.asarray(x), "float16"), dict(params))
    _refuse_non_finite(params)
    return _write(Path(directory), params, kind, dict(network), None, overwrite=True, packed=True)


def load(
    source: str | Path,
    *,
    sharding: Shardings | None = None,
    dtype: Any = None,
    initialise_missing: bool = False,
) -> LoadedNetwork:
    """Returns a pairwise network from a converted folder, an official file, or a shipped name.

    sharding: where the parameters go (None: the default device); converted folders are read
    straight into it, each device its part. dtype: float32, bfloat16 or float16 for all floating
    parameters; None keeps the stored type (float16, a storage format here, becomes float32).
    initialise_missing: files of an earlier stage of training (CroCo v2) get new heads.
    Raises UserError when there is nothing usable, or when what was stored is damaged.
    """
    path = _locate(source)
    dtype = None if dtype is None else _known_dtype(dtype)
    if path.is_dir() and folder_lib.is_weights(path):
        return _load_folder(path, sharding, dtype)
    weights = reader.read_weights(path)
    initial = None
    if initialise_missing:
        initial = align3r.init_params(weights.config, jax.random.key(0))
    elif not any("downstream_head" in name for name in weights.state):
        raise UserError(
            f"{path.name} has no heads: these are weights of CroCo's pre-training, which predict "
            "no point maps. To start a training from them, convert with --initialise_missing."
        )
    params = table.import_state(weights.state, weights.config, initial)
    described = folder_lib.describe(_flatten(params))
    return LoadedNetwork(
        weights.config,
        _place(params, sharding, dtype),
        path.stem if path.is_file() else path.name,
        folder_lib.checksum(settings_lib.encode_network(weights.config), described),
        {"source": weights.source},
    )


def load_shipped(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (float32 parameters, settings) of a network of any kind that comes with the package.

    Raises UserError if this installation has no such network.
    """
    path = _shipped_folder(name)
    if path is None:
        raise UserError(f"This installation has no network '{name}'; it has {_shipped_names()}.")
    manifest = folder_lib.read_manifest(path)
    return _place(_restore(path, manifest, None, "float32"), None, None), manifest["network"]


def export(
    params: Params, config: NetworkConfig, path: str | Path, *, overwrite: bool = False
) -> Path:
    """Writes a `.safetensors` file with the names and layouts of the reference implementation.

    It holds the configuration too, so `load` reads it back to the same parameters. Raises
    UserError if `path` exists without `overwrite`, or `params` are not those of `config`.
    """
    path = Path(path)
    check_export(path, overwrite)
    params = jax.tree.map(np.asarray, dict(params))
    state = table.export_state(params, config)
    text = json.dumps(settings_lib.encode_network(config))
    size = sum(array.nbytes for array in state.values())
    with folder_lib.written_at_once(path, size) as hidden:
        safetensors_numpy.save_file(
            state, hidden, metadata={"format": "pt", reader.CONFIG_ENTRY: text}
        )
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
        f".safetensors file, a hub folder, or the name of a shipped network ({_shipped_names()})."
    )


def _shipped_folder(name: str) -> Path | None:
    path = Path(str(resources.files("align3r_jax.weights"))) / "shipped" / name
    return path if Path(name).name == name and folder_lib.is_weights(path) else None


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
    manifest = {
        "kind": kind,
        "network": network,
        "checksum": folder_lib.checksum(network, parameters),
        "parameter_count": sum(array.size for array in flat.values()),
        "meta": dict(meta or {}),
        "parameters": parameters,
    }
    size = sum(array.nbytes for array in flat.values())
    with folder_lib.written_at_once(directory, size) as hidden:
        hidden.mkdir()
        if packed:
            safetensors_numpy.save_file(flat, hidden / folder_lib.PACKED_FILE)
        else:
            tree = traverse_util.unflatten_dict(flat, sep="/")
            ocp.save_checkpointables(
                (hidden / folder_lib.CHECKPOINT).absolute(), {_CHECKPOINTABLE: tree}
            )
        folder_lib.write_manifest(hidden, manifest)
    return manifest["checksum"]


def _flatten(params: Params) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    return {path: np.asarray(leaf, order="C") for path, leaf in sorted(flat.items())}


def _check_tree(params: Params, config: NetworkConfig, place: str) -> None:
    """Refuses parameters of another network, and parameters that are not finite."""
    _compare({path: list(np.shape(leaf)) for path, leaf in _flatten(params).items()}, config, place)
    _refuse_non_finite(params)


def _compare(shapes: Mapping[str, list[int]], config: NetworkConfig, place: str) -> None:
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
def _expected_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(align3r.abstract_params(config), sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _refuse_non_finite(params: Params) -> None:
    broken = [path for path, array in _flatten(params).items() if not np.isfinite(array).all()]
    if broken:
        raise UserError(
            f"{len(broken)} parameters hold NaN or infinite numbers, so they were not written: "
            f"{', '.join(broken[:8])}."
        )


# ---- reading


def _load_folder(path: Path, sharding: Shardings | None, dtype: str | None) -> LoadedNetwork:
    manifest = folder_lib.read_manifest(path)
    if manifest["kind"] != _PAIRWISE:
        raise UserError(
            f"{path} holds weights of another kind of network ({manifest['kind']}), expected a "
            "pairwise network (DUSt3R, MonST3R, Align3R)."
        )
    config = settings_lib.decode_network(manifest["network"], str(path))
    _compare({k: v[1] for k, v in manifest["parameters"].items()}, config, str(path))
    return LoadedNetwork(
        config,
        _restore(path, manifest, sharding, dtype),
        path.name,
        manifest["checksum"],
        manifest["meta"],
    )


def _restore(
    path: Path, manifest: Mapping[str, Any], sharding: Shardings | None, dtype: str | None
) -> dict[str, Any]:
    """The parameter tree of a checked folder; the checkpoint is read in parts, cast and placed."""
    if (path / folder_lib.PACKED_FILE).is_file():
        with safetensors.safe_open(path / folder_lib.PACKED_FILE, framework="numpy") as file:
            flat = {name: file.get_tensor(name) for name in manifest["parameters"]}
        return _place(traverse_util.unflatten_dict(flat, sep="/"), sharding, dtype)
    flat_abstract = {
        name: jax.ShapeDtypeStruct(shape, _target_dtype(stored, dtype))
        for name, (stored, shape, _) in manifest["parameters"].items()
    }
    abstract = traverse_util.unflatten_dict(flat_abstract, sep="/")
    # Orbax loads onto other devices than those of the writer only if every leaf names its own.
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        _sharding_tree(abstract, sharding),
    )
    return ocp.load_checkpointables(
        (path / folder_lib.CHECKPOINT).absolute(), {_CHECKPOINTABLE: abstract}
    )[_CHECKPOINTABLE]


def _place(params: Params, sharding: Shardings | None, dtype: str | None) -> dict[str, Any]:
    return jax.tree.map(
        lambda leaf, place: jax.device_put(_cast(leaf, _target_dtype(leaf.dtype, dtype)), place),
        dict(params),
        _sharding_tree(params, sharding),
    )


def _sharding_tree(abstract: Params, sharding: Shardings | None) -> Any:
    if sharding is None:
        sharding = jnp.zeros(()).sharding  # wherever new arrays go
    if isinstance(sharding, jax.sharding.Sharding):
        return jax.tree.map(lambda _: sharding, dict(abstract))
    return sharding(abstract)


def _known_dtype(dtype: Any) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _DTYPES:
        raise UserError(f"dtype={name!r} is not supported; expected one of {', '.join(_DTYPES)}.")
    return name


def _target_dtype(stored: Any, wanted: str | None) -> jnp.dtype:
    stored = jnp.dtype(stored)
    if not jnp.issubdtype(stored, jnp.floating):
        return stored
    if wanted is None:
        return jnp.dtype("float32") if stored == jnp.float16 else stored
    return jnp.dtype(wanted)


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    dtype = jnp.dtype(dtype)
    return np.asarray(array) if array.dtype == dtype else np.asarray(array).astype(dtype)
