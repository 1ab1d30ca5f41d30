"""Align3R's recipe (Lu et al. 2024, section 4.1, and its released script): ViT-L, 512 pixels.

Command: python -m experiments.train --config=experiments/configs/align3r_vitl_512.py
    --workdir=outputs/align3r --config.data.roots.pointodyssey=DIR ... (five sets, docs/training.md)
Purpose: a depth prior learns to correct DUSt3R on dynamic scenes. The prior's files lie beside the
    pictures (experiments.estimate_priors); one training per prior, `depthpro` or `depthanything`.
Hardware: 16 pairs an update in 8 parts of 2, as the script's 2 GPUs x 2 pairs x 4; one or two GPUs
    of 80 GB. On N devices --config.optimizer.accumulate=(at most 16 / N); bfloat16 and remat save
    memory. The paper: 6 RTX 4090, about 20 hours.
Expected (authors): training loss about -0.663 after 50 epochs; but their weights started from an
    earlier dynamic fine-tuning, and a re-run from DUSt3R by others stopped at -0.569. Not run here.
"""

from ml_collections import ConfigDict

from experiments import train_settings

PAIRS = 27_750  # an epoch
UPDATES = PAIRS // 16  # 1,734
EPOCHS, WARMUP_EPOCHS = 50, 5
_SETS = ("pointodyssey", "tartanair", "spring", "sceneflow", "vkitti2")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; `arg` is unused."""
    del arg
    return train_settings.complete(
        {
            "task": "pairwise",
            "network": "align3r_vitl_512_dpt",
            "network_settings": {},
            "init_from": "weights/DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth",
            # parity: data.parity, which trains on the scenes that the tests below look at
            "data": {
                "source": "files",
                "mixture": "12_500 @ pointodyssey + 6_250 @ tartanair + "
                "1_000 @ spring + 5_000 @ sceneflow + 3_000 @ vkitti2",
                "roots": {name: f"datasets/{name}" for name in _SETS},
                "pairs": "align3r",
                "prior": "depthpro",
                "augmentation": "align3r",
                "hold_out": 0,
                "parity": False,
                "workers": 4,
                "threads": 4,
                "prefetch": 4,
            },
            "resolutions": ((288, 512), (336, 512), (256, 512)),
            "batch_size": 16,
            "symmetrise": True,
            "loss": {"alpha": 0.2, "norm_mode": "avg_dis", "max_depth": 400.0},
            "optimizer": {
                "lr": 5e-5,
                "lr_min": 1e-6,
                "warmup": WARMUP_EPOCHS * UPDATES,
                "weight_decay": 0.05,
                "b1": 0.9,
                "b2": 0.95,
                "frozen": "align3r",
                "accumulate": 8,
                "clip_norm": 0.0,
            },
            "average_decay": 0.0,
            "compute_dtype": "float32",
            "remat": True,
            "mesh": {"data": -1, "fsdp": 1},
            "steps": EPOCHS * UPDATES,
            "seed": 0,
            "log_every": 20,
            "save_every": UPDATES,
            "keep": 2,
            "keep_best": 1,
            "monitor": "mean_of_medians",
            "evaluate_every": UPDATES,
            "evaluate": {
                "sets": {
                    "pointodyssey": "1_000 @ pointodyssey(split=test)",
                    "spring": "1_000 @ spring(split=test)",
                    "tartanair": "1_000 @ tartanair(split=test)",
                    "sceneflow": "1_000 @ sceneflow(split=test, variant=flyingthings)",
                },
                "roots": ConfigDict(),
                "batch_size": 8,
                "resolution": (224, 224),
            },
            "images_every": UPDATES,
            "max_minutes": 0.0,
            "stop_on_non_finite": True,
        }
    )
