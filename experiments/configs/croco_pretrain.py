"""CroCo v2 (Weinzaepfel et al. 2023): one view is completed with the help of another.

Command: python -m experiments.train --config=experiments/configs/croco_pretrain.py
    --workdir=outputs/croco --config.data.roots.folder=DIR
Purpose: weights that a pairwise training starts from: --config.init_from=outputs/croco. Only the
    pictures of pairs are read; the papers used Habitat, ARKitScenes, MegaDepth, 3DStreetView and
    IndoorVL, here any training set will do. Each view has a crop of its own, 224 x 224 anywhere in
    the middle 256 x 256, and colours of its own (`data.augment`, preset "croco").
Hardware: 256 pairs an update (4 GPUs x 64); base learning rate 1.5e-4 per 256, warm-up 12 of 250
    epochs, stopped at 125 (v2 large, 8 GPUs).
Expected numbers: none are published for the loss. Not run here.
"""

from ml_collections import ConfigDict

from experiments import train_settings

UPDATES = 1_000_000 // 256  # an epoch of a million pairs


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; `arg` is unused."""
    del arg
    return train_settings.complete(
        {
            "task": "croco",
            "network": "dust3r_vitl_224_linear",
            "data": {
                "source": "files",
                "mixture": "1_000_000 @ folder",
                "roots": {"folder": "datasets/own"},
                "pairs": "window_10",
                "augmentation": "croco",
                "hold_out": 10,
                "workers": 8,
                "threads": 4,
                "prefetch": 4,
            },
            "resolutions": ((224, 224),),
            "batch_size": 256,
            "loss": {"masked": 0.9},
            "optimizer": {
                "base_lr": 1.5e-4,
                "lr_min": 0.0,
                "warmup": 12 * UPDATES,
                "weight_decay": 0.05,
                "b2": 0.95,
                "accumulate": 1,
            },
            "compute_dtype": "float32",
            "remat": False,
            "mesh": {"data": -1, "fsdp": 1},
            "steps": 250 * UPDATES,
            "seed": 0,
            "log_every": 50,
            "save_every": 1000,
            "evaluate_every": UPDATES,
            "evaluate": {"sets": {"own": "1_000 @ folder"}, "batch_size": 64},
            "max_minutes": 0.0,
        }
    )
