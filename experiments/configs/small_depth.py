"""The shipped monocular network, trained on rendered frames alone.

Command: python -m experiments.train --config=experiments/configs/small_depth.py
    --workdir=outputs/mono --export=outputs/mono_weights
Hardware and time: two CPU cores; not timed apart.
Expected: Abs Rel 0.339 on unseen procedural clips, where a constant depth has 0.421; on real video
    worse than a constant (the committed weights, align3r_jax/weights/shipped/gates.json).
"""

from ml_collections import ConfigDict

from experiments.configs import align3r_small


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings of the pairwise training with the monocular task."""
    config = align3r_small.get_config(arg)
    config.task = "mono"
    config.network = "small_depth"
    config.loss = ConfigDict({"gradient_weight": 0.3})
    config.optimizer.lr = 6e-4
    config.optimizer.warmup = 100
    config.optimizer.clip_norm = 1.0
    config.steps = 3000
    return config
