"""The shipped pairwise network, trained on rendered pairs alone.

Command: python -m experiments.train --config=experiments/configs/align3r_small.py
    --workdir=outputs/small --export=outputs/small_weights
Learns to clean a depth prior, with and without one (prior dropout); hardly any relative pose.
Hardware and time: two CPU cores; 64,000 pairs, about two hours of CPU time.
Expected: Abs Rel of a noisy prior 0.141 -> 0.097 on unseen procedural clips, 0.086 -> 0.056 on a
    real one (the committed weights, align3r_jax/weights/shipped/gates.json; they were trained in
    pieces, planned for 16,000 updates at first, from 3,800 on for 10,000, from 5,800 on for 8,000).
"""

from typing import Any

from ml_collections import ConfigDict

from experiments import train_settings

# Of size and output; align3r_small.py:NAME trains one of them, experiments/README.md compares.
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "narrow": {"enc_embed_dim": 96, "dec_embed_dim": 96},
    "wide": {"enc_embed_dim": 192, "dec_embed_dim": 192, "enc_num_heads": 6, "dec_num_heads": 6},
    "shallow": {"enc_depth": 3},
    "direct": {"output": "direct"},
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; `arg` is a name of `VARIANTS`, the shipped network without.

    Raises ValueError for another one.
    """
    if arg not in VARIANTS:
        known = ", ".join(name for name in VARIANTS if name)
        raise ValueError(f"Unknown variant {arg!r} of align3r_small; known are {known}.")
    return train_settings.complete(
        {
            "task": "pairwise",
            "network": "align3r_small",
            "network_settings": VARIANTS[arg],
            "data": {"source": "procedural", "prior_dropout": 0.35},
            "resolutions": ((128, 160),),
            "batch_size": 8,
            "steps": 8000,
            "seed": 0,
            "loss": {"alpha": 0.2},
            "optimizer": {
                "lr": 8e-4,
                "lr_min": 1e-5,
                "warmup": 200,
                "weight_decay": 0.05,
                "clip_norm": 0.0,
            },
            "average_decay": 0.998,
            "compute_dtype": "float32",
            "log_every": 50,
            "save_every": 200,
            "evaluate_every": 500,
            "evaluate": {"sets": {"unseen": "procedural"}, "batches": 4, "batch_size": 16},
            "images_every": 1000,
            "max_minutes": 0.0,  # 0: no limit
        }
    )
