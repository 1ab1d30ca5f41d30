"""The values a network starts from, as a table over parameter paths.

CroCo's Xavier step reaches the transformer and the image's patch embedding; the rest keeps
PyTorch's defaults.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from align3r_jax.config import NetworkConfig

# First match wins. "xavier": uniform +-sqrt(6 / (fan in + fan out)) of the kernel as one matrix
# (queries, keys and values together); "fan_in": uniform +-1 / sqrt(fan in), biases too.
_RULES: tuple[tuple[str, str], ...] = (
    (r"mask_token", "token"),
    (r".*/scale", "one"),
    (r"encoder/patch_embed/kernel", "xavier"),
    (r"(encoder|prior_branch)/patch_embed/.*", "fan_in"),
    (r"prior_branch/injection_\d+/.*", "zero"),  # a new branch changes nothing
    (r"head\d/.*", "fan_in"),
    (r".*/kernel", "xavier"),
    (r".*/bias", "zero"),
)
# An anchored network starts at its prior: all of the head's last layer is 0.
_ANCHORED = ((r"head\d/(output_3|project)/.*", "zero"),)


def fill(shapes: Mapping[str, Any], config: NetworkConfig, key: jax.Array) -> dict[str, Any]:
    """Returns a tree of initial parameters for a tree of shapes (`align3r.abstract_params`).

    Decoder 2 gets the values of decoder 1. All uniform values are one draw, cut up: XLA takes
    a third of a second to compile each sampler, and there would be one per parameter.
    """
    flat = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in traverse_util.flatten_dict(dict(shapes), sep="/").items()
    }
    rules = (_ANCHORED if config.output == "anchored" else ()) + _RULES

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        key_uniform, key_token = jax.random.split(key)
        kinds = {
            path: next(rule for pattern, rule in rules if re.fullmatch(pattern, path))
            for path in flat
            if not path.startswith("decoder2/")
        }
        drawn = [path for path, kind in kinds.items() if kind in ("xavier", "fan_in")]
        offsets = np.cumsum([0] + [math.prod(flat[path].shape) for path in drawn])
        pool = jax.random.uniform(key_uniform, (int(offsets[-1]),), jnp.float32, -1.0, 1.0)
        values = {}
        for path, start, stop in zip(drawn, offsets[:-1], offsets[1:]):
            kernel = flat[re.sub(r"/bias$", "/kernel", path)].shape
            fan_in, fan_out = math.prod(kernel[:-1]), kernel[-1]
            xavier = kinds[path] == "xavier"
            bound = math.sqrt(6 / (fan_in + fan_out)) if xavier else fan_in**-0.5
            values[path] = bound * pool[start:stop].reshape(flat[path].shape)
        for path, kind in kinds.items():
            if kind == "token":
                values[path] = 0.02 * jax.random.normal(key_token, flat[path].shape)
            elif kind in ("zero", "one"):
                values[path] = jnp.full(flat[path].shape, float(kind == "one"))
        return {
            path: values[re.sub(r"^decoder2/", "decoder1/", path)].astype(leaf.dtype)
            for path, leaf in flat.items()
        }

    return traverse_util.unflatten_dict(jax.jit(draw)(key), sep="/")
