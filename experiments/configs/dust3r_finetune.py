"""DUSt3R on your own scenes, by the settings of its third stage (Wang et al. 2023, section 4).

Command: python -m experiments.train --config=experiments/configs/dust3r_finetune.py
    --workdir=outputs/dust3r --config.data.roots.folder=DIR
Purpose: to adapt the released weights to a domain: a folder of pictures, depth and cameras
    (data/README.md), no depth prior, nothing frozen.
Hardware: 64 pairs an update in 8 parts of 8, as 8 GPUs x 4 pairs x 2; the paper's stage took 8 A100
    2 days and 2 hours for 90 epochs of 80,000 pairs. This runs 10 epochs of 10,000 pairs.
Expected numbers: none are published. Not run here.
"""

from ml_collections import ConfigDict

from experiments.configs import align3r_vitl_512

UPDATES = 10_000 // 64  # an epoch
EPOCHS = 10


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; `arg` is unused."""
    config = align3r_vitl_512.get_config(arg)
    config.network = "dust3r_vitl_512_dpt"
    config.data = ConfigDict(
        {
            "source": "files",
            "mixture": "10_000 @ folder",
            "roots": {"folder": "datasets/own"},
            "pairs": "window_10",
            "augmentation": "dust3r",
            "hold_out": 10,
            "workers": 4,
            "threads": 4,
            "prefetch": 4,
        }
    )
    config.resolutions = ((384, 512), (336, 512), (288, 512), (256, 512), (160, 512))
    config.batch_size = 64
    config.loss.max_depth = float("inf")
    config.optimizer.frozen = "none"
    config.optimizer.lr = 1e-4
    config.optimizer.warmup = EPOCHS * UPDATES // 6  # 15 of 90 epochs
    config.steps = EPOCHS * UPDATES
    config.save_every = config.evaluate_every = config.images_every = UPDATES
    config.evaluate.sets = ConfigDict({"own": "500 @ folder"})
    return config
