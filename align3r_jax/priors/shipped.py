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

from align3r_jax import config as config_lib
from align3r_jax.config import ReconstructConfig
from align3r_jax.networks.small_depth import SmallDepth, SmallDepthConfig
from align3r_jax.priors.mono_depth import DepthMaps, DepthModel
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
    """Returns what `config.prior` means for this run: small, plane, none or files:DIR.

    Networks with weights of their own are chosen before, in `sources`.
    """
    if config.prior != "auto":
        if config.prior == "small":
            note(
                "Prior small: a toy network trained on procedural scenes; depth relief of real "
                "scenes is weak. Better: --prior=depth_anything_v2_small, depth_pro or files:DIR."
            )
        return config.prior
    if model is not None and not model.config.prior_branch:
        return "none"
    if gates()["small_depth"]["use"]["as_default_prior"]:
        note(
            "No depth prior was given: the shipped toy network (trained on procedural scenes) "
            "stands in; a real one (--prior=depth_anything_v2_small, depth_pro or files:DIR) "
            "gives better depth."
        )
        return "small"
    note(
        "No depth prior was given: depth starts from a plane and comes from parallax alone; "
        "a real prior (--prior=depth_anything_v2_small, depth_pro or files:DIR) gives better depth."
    )
    return "plane"


def mono_models() -> dict[str, DepthModel]:
    """Returns the monocular networks that `priors.mono_depth` may be asked for by name."""
    return {"small": SmallDepthModel()}


class SmallDepthModel:
    """The shipped monocular network as a `DepthModel`; its weights are read when first used."""

    @property
    def checksum(self) -> str:
        """Of the weights and settings: results are cached under it."""
        return store.shipped_checksum("small_depth")

    def __call__(self, images: Array) -> DepthMaps:
        """Returns relative depth (T, h, w) at the network's size, median 1 per frame."""
        network, params, apply = _small_depth_network()
        width = network.config.width
        height = max(16, 16 * round(width * images.shape[1] / images.shape[2] / 16))
        depths = []
        for image in images:
            frame = cv2.resize(np.asarray(image), (width, height), interpolation=cv2.INTER_AREA)
            log_depth = apply(params, frame[None].astype(np.float32) / 127.5 - 1)[0]
            depths.append(np.exp(log_depth - np.median(log_depth)))
        return DepthMaps(np.stack(depths).astype(np.float32))


@functools.cache
def _small_depth_network() -> tuple[SmallDepth, Any, Callable[[Any, Any], jax.Array]]:
    """The network, its weights and its program, compiled once however often frames come."""
    params, settings = store.load_shipped("small_depth")
    network = SmallDepth(config_lib.from_dict(SmallDepthConfig, settings))
    return network, params, jax.jit(lambda p, x: network.apply({"params": p}, x))
