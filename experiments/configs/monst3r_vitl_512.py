"""MonST3R's recipe (Zhang et al. 2024, section 4.1, and its README): DUSt3R on dynamic scenes.

Command: python -m experiments.train --config=experiments/configs/monst3r_vitl_512.py
    --workdir=outputs/monst3r --config.data.roots.pointodyssey=DIR ... (four sets)
Purpose: decoders, heads and what feeds them learn from moving scenes; the encoder is frozen.
Hardware: 32 pairs an update in 8 parts of 4 (README: 2 GPUs x 4 pairs x 4). The paper: 2 RTX 6000
    of 48 GB, one day, for 25 epochs; its README says 50 (`monst3r_vitl_512.py:paper`: 25).
Expected numbers: those of the released weights (docs/evaluation.md). Not run here.
"""

from ml_collections import ConfigDict

from experiments.configs import align3r_vitl_512

UPDATES = 20_000 // 32  # an epoch
_SETS = ("pointodyssey", "tartanair", "spring", "waymo")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings. arg: "" for the README's 50 epochs, "paper" for 25."""
    if arg not in ("", "paper"):
        raise ValueError(f"Unknown variant {arg!r}; known are '' and 'paper'.")
    config = align3r_vitl_512.get_config()
    config.network = "monst3r_vitl_512_dpt"
    config.data = ConfigDict(
        {
            "source": "files",
            "mixture": "10_000 @ pointodyssey + 5_000 @ tartanair(variant=hard) + "
            "1_000 @ spring + 4_000 @ waymo",
            "roots": {
                name: f"datasets/{name}"
                for name in ("pointodyssey", "tartanair", "spring", "waymo")
            },
            "pairs": "monst3r",
            "augmentation": "monst3r",
            "hold_out": 0,
            "parity": False,
            "workers": 4,
            "threads": 4,
            "prefetch": 4,
        }
    )
    config.resolutions = ((288, 512), (384, 512), (336, 512))
    config.batch_size = 32
    config.loss.max_depth = 80.0
    config.optimizer.frozen = "encoder"
    config.optimizer.warmup = 3 * UPDATES
    config.steps = (25 if arg == "paper" else 50) * UPDATES
    config.save_every = config.evaluate_every = config.images_every = UPDATES
    config.evaluate.sets = ConfigDict(
        {
            "pointodyssey": "1_000 @ pointodyssey(split=test)",
            "spring": "1_000 @ spring(split=test)",
            "tartanair": "1_000 @ tartanair(split=test)",
        }
    )
    return config
