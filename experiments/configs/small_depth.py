"""The shipped monocular network, trained on rendered frames alone.

Command: python -m experiments.train --config=experiments/configs/small_depth.py
    --workdir=outputs/mono --export=outputs/mono_weights
Hardware and time: two CPU cores; 112,000 frames, two hours of CPU time.
Expected: Abs Rel 0.280 on unseen procedural clips, where a constant depth has 0.421, and 0.124 on a
    real one (0.189), with one scale per frame (the committed weights,
    align3r_jax/weights/shipped/gates.json; planned for 8,000 updates, from 3,770 on for 7,000).
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
    config.steps = 7000
    # Frames of a pair far apart, plain surfaces and odd exposures: what real video is like.
    config.data = ConfigDict(
        {
            "source": "procedural",
            "options": {
                "gap": (0.3, 3.0),
                "scene": {"faded": 0.5},
                "sensor": {"exposure": 0.25, "balance": 0.08},
            },
        }
    )
    return config
