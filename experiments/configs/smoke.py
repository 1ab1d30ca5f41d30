"""A training that shows everything in less than a minute: rendered pairs, a tiny network.

Command: python -m experiments.train --config=experiments/configs/smoke.py --workdir=outputs/smoke
Purpose: to see that an installation trains, writes checkpoints, logs, pictures, and resumes
    (run it again with --config.steps=60). What it learns is worth nothing.
Hardware and time: two CPU cores; 43 seconds of CPU time (`time`, user + sys, nothing compiled
    before: JAX_COMPILATION_CACHE_DIR an empty folder), most of it compiling; 21 with the
    programs that are kept then. `quick_compile` saves 12 of 55.
Expected: 40 updates, the mean loss falls from 0.93 (first ten) to 0.77 (last ten).
"""

from ml_collections import ConfigDict

from experiments.configs import align3r_small


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings of the small training, cut down."""
    config = align3r_small.get_config(arg)
    config.network_settings = ConfigDict(
        {"enc_embed_dim": 64, "enc_depth": 1, "dec_embed_dim": 64, "head": "linear"}
    )
    config.resolutions = ((48, 64),)
    config.batch_size = 4
    config.steps = 40
    config.optimizer.warmup = 5
    config.log_every = 10
    config.save_every = 20
    config.evaluate_every = 20
    config.evaluate.batches = 1
    config.evaluate.batch_size = 4
    config.images_every = 20
    config.quick_compile = True  # which is most of the time
    return config
