"""The values a network starts from, as a table over parameter paths.

CroCo's Xavier step reaches the transformer and the image's patch embedding; the rest keeps
PyTorch's defaults.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from align3r_jax.config import NetworkConfig

# First match wins. "xavier": uniform +-sqrt(6 / (fan in + fan out)) of the kernel as one matrix
# (queries, keys and values together); "fan_in": uniform +-1 / sqrt(fan in), biases too; a number
# stands for itself.
_RULES: tuple[tuple[str, str], ...] = (
    (r"mask_token", "token"),
    (r".*/scale", "1"),
    (r"encoder/patch_embed/kernel", "xavier"),
    (r"(encoder|prior_branch)/patch_embed/.*", "fan_in"),
    (r"prior_branch/injection_\d+/.*", "0"),  # a new branch changes nothing
    (r"head\d/.*", "fan_in"),
    (r".*/kernel", "xavier"),
    (r".*/bias", "0"),
)
# An anchored network starts at its prior: all of the head's last layer is 0.
_ANCHORED = ((r"head\d/(output_3|project)/.*", "0"),)
# Parts of any network that embeds `networks.dinov2.DinoV2` at the path ENCODER.
_DINOV2 = (
    (r"ENCODER/(class_token|positions)", "token"),
    (r"ENCODER/block_\d+/scale_(attention|mlp)", "1e-5"),
    (r"ENCODER/(.*/)?scale", "1"),
    (r"ENCODER/.*/kernel", "xavier"),
    (r"ENCODER/.*/bias", "0"),
)


def encoder_rules(path: str) -> tuple[tuple[str, str], ...]:
    """Returns the rules, for `draw`, of DINOv2 encoders at `path` (a pattern)."""
    return tuple((pattern.replace("ENCODER", path), kind) for pattern, kind in _DINOV2)


def fill(shapes: Mapping[str, Any], config: NetworkConfig, key: jax.Array) -> dict[str, Any]:
    """Returns a tree of initial parameters for a tree of shapes (`align3r.abstract_params`).

    Decoder 2 gets the values of decoder 1.
    """
    rules = (_ANCHORED if config.output == "anchored" else ()) + _RULES
    return draw(shapes, rules, key, copies=("decoder2/", "decoder1/"))


def draw(
    shapes: Mapping[str, Any],
    rules: Sequence[tuple[str, str]],
    key: jax.Array,
    copies: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Returns a tree of parameters like `shapes`, each filled as the first rule that fits says.

    rules: (pattern of the whole path, kind); kinds: "xavier", "fan_in", "token" (normal, 0.02), or
    a number. copies: (start, other start): paths that start so get the values of those that start
    otherwise. All uniform values are one draw, cut up: XLA takes a third of a second to compile
    each sampler, and there would be one per parameter.
    """
    flat = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in traverse_util.flatten_dict(dict(shapes), sep="/").items()
    }
    start, other = copies or ("", "")
    own = {
        path: next(kind for pattern, kind in rules if re.fullmatch(pattern, path))
        for path in flat
        if not (start and path.startswith(start))
    }

    def sample(key: jax.Array) -> dict[str, jax.Array]:
        key_uniform, key_token = jax.random.split(key)
        drawn = [path for path, kind in own.items() if kind in ("xavier", "fan_in")]
        offsets = np.cumsum([0] + [math.prod(flat[path].shape) for path in drawn])
        pool = jax.random.uniform(key_uniform, (int(offsets[-1]),), jnp.float32, -1.0, 1.0)
        values = {}
        for path, begin, end in zip(drawn, offsets[:-1], offsets[1:]):
            kernel = flat[re.sub(r"/bias$", "/kernel", path)].shape
            fan_in, fan_out = math.prod(kernel[:-1]), kernel[-1]
            bound = math.sqrt(6 / (fan_in + fan_out)) if own[path] == "xavier" else fan_in**-0.5
            values[path] = bound * pool[begin:end].reshape(flat[path].shape)
        for path, kind in own.items():
            if kind == "token":
                values[path] = 0.02 * jax.random.normal(key_token, flat[path].shape)
            elif kind not in ("xavier", "fan_in"):
                values[path] = jnp.full(flat[path].shape, float(kind))
        return {
            path: values[path if path in own else other + path.removeprefix(start)].astype(
                leaf.dtype
            )
            for path, leaf in flat.items()
        }

    return traverse_util.unflatten_dict(jax.jit(sample)(key), sep="/")
