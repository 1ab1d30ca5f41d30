"""The small networks that come with the package, and where they may be used.

`weights/shipped/gates.json` records what each reached on data it never saw, beside the trivial
baselines; a network is used by default only where it beat them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import cv2
import jax
import numpy as np

from align3r_jax.config import ReconstructConfig
from align3r_jax.networks.small_depth import SmallDepth, SmallDepthConfig
from align3r_jax.structs import Array
from align3r_jax.weights import store
from align3r_jax.weights.store import LoadedNetwork


@functools.cache
def gates() -> dict[str, Any]:
    """Returns the measured gates: network name -> {"use": {...}, "measured": {...}}."""
    file = resources.files("align3r_jax.weights") / "shipped" / "gates.json"
    return json.loads(file.read_text())


def prior_spec(
    config: ReconstructConfig, model: LoadedNetwork | None, note: Callable[[str], None]
) -> str:
    """Returns what `config.prior` means for this run: small, plane, none or files:DIR."""
    if config.prior != "auto":
        if config.prior == "small":
            note(
                "Prior small: a toy network trained on procedural scenes; depth relief of real "
                "scenes is weak. Give your own with --prior=files:DIR."
            )
        return config.prior
    if model is not None and not model.config.prior_branch:
        return "none"
    if gates()["small_depth"]["use"]["as_default_prior"]:
        note(
            "No depth prior was given: the shipped toy network (trained on procedural scenes) "
            "stands in; --prior=files:DIR with a real one gives better depth."
        )
        return "small"
    note(
        "No depth prior was given: depth starts from a plane and comes from parallax alone; "
        "--prior=files:DIR with a real one gives better depth."
    )
    return "plane"


def mono_models() -> dict[str, Callable[[Array], tuple[Array, None, bool, bool]]]:
    """Returns the monocular networks that `priors.mono_depth` may be asked for by name."""
    return {"small": small_depth}


def small_depth(images: Array) -> tuple[np.ndarray, None, bool, bool]:
    """Returns (depth, focal, inverse, metric) of frames (T, H0, W0, 3) uint8.

    depth: (T, h, w) float32 relative, median 1 per frame, at the network's size; focal unknown.
    """
    network, params, config = _small_depth_network()
    height, width = images.shape[1:3]
    rows = max(16, 16 * round(config.width * height / width / 16))
    resized = np.stack(
        [cv2.resize(np.asarray(i), (config.width, rows), interpolation=cv2.INTER_AREA)
         for i in images]
    )  # fmt: skip
    apply = jax.jit(lambda p, x: network.apply({"params": p}, x))
    depths = []
    for frame in resized:
        log_depth = np.asarray(apply(params, frame[None].astype(np.float32) / 127.5 - 1))[0]
        depths.append(np.exp(log_depth - np.median(log_depth)))
    return np.stack(depths).astype(np.float32), None, False, False


@functools.cache
def _small_depth_network() -> tuple[SmallDepth, Any, SmallDepthConfig]:
    params, settings = store.load_shipped("small_depth")
    config = SmallDepthConfig(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    )
    return SmallDepth(config), params, config
