"""Files of masked pre-training, with the names of CroCo v2: one decoder, a head for pixels.

`training.initialise` and `store.load(..., initialise_missing=True)` read them like official ones.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from align3r_jax.config import NetworkConfig
from align3r_jax.weights import folder as folder_lib
from align3r_jax.weights import mapping, reader, store
from align3r_jax.weights import settings as settings_lib
from align3r_jax.weights.tables import align3r

RULES = [*align3r.RULES, mapping.Rule("prediction_head", "prediction_head", "linear")]


def export(
    params: Mapping[str, Any], config: NetworkConfig, path: str | Path, *, overwrite: bool = False
) -> Path:
    """Writes a `.safetensors` file of the parameters of `networks.croco_pretrain`.

    Raises UserError if `path` exists without `overwrite`.
    """
    path = Path(path)
    store.check_export(path, overwrite)
    state = mapping.from_tree(jax.tree.map(np.asarray, dict(params)), RULES)
    config = dataclasses.replace(config, prior_branch=False)
    text = json.dumps(settings_lib.encode_network(config))
    with folder_lib.written_at_once(path, sum(a.nbytes for a in state.values())) as hidden:
        safetensors_numpy.save_file(state, hidden, metadata={reader.CONFIG_ENTRY: text})
    return path
