"""The ablations of the papers' tables, one training per variant.

Command: python -m experiments.train --config=experiments/configs/ablation.py:no_prior
    --workdir=outputs/no_prior (roots as in align3r_vitl_512.py); of the small network on rendered
    pairs all variants, their common start and the table: python -m experiments.train_ablation
Every variant fine-tunes a pre-trained pairwise network that has seen no prior, as the papers do:
DUSt3R, and behind `small-` the one that `ablation.py:small-start` trains (init_from).

| variant | what differs from the recipe of Align3R, which freezes the encoder |
|---|---|
| zero_conv | nothing |
| concat | the prior's z is a fourth channel of the image, there is no branch; the patches train |
| no_prior | no prior |
| full | everything trains |
| last_layers | the last third of both decoders, what follows them, and the heads; no prior |
| decoder_and_head | what MonST3R trains: all but the encoder |
| decoder_only | decoders and prior branch alone |
| head_only | heads alone; the injections stay zero, so the prior is not seen |
| small-start | no prior, everything trains, from scratch |

Hardware and time: as align3r_vitl_512.py and align3r_small.py.
Expected, Align3R on Sintel, Abs Rel of video depth (sources in evaluation/published.json):
    zero_conv 0.263, no_prior 0.306, full 0.310, last_layers 0.319, concat 0.399.
    MonST3R's table, with its own recipe: decoder_and_head 0.335, full 0.352, head_only 0.394.
    Not run here at full size; of the small network experiments/README.md has the table.
"""

from ml_collections import ConfigDict

from experiments.configs import align3r_small, align3r_vitl_512

NETWORKS = {
    "zero_conv": {},
    "concat": {"prior_injection": "concat"},
    "no_prior": {"prior_branch": False},
    "last_layers": {"prior_branch": False},
    "start": {"prior_branch": False},
}
FROZEN = {
    "zero_conv": "align3r",
    # A frozen patch embedding would keep the new channel at zero.
    "concat": ("encoder/(?!patch_embed/).*", "decoder_embed/.*", "mask_token"),
    "no_prior": "align3r",
    "last_layers": (r"(?!decoder[12]/block_(08|09|10|11)/|decoder_norm/|head\d/).*",),
    "full": "none",
    "decoder_and_head": "encoder",
    "decoder_only": "decoder_only",
    "head_only": "head_only",
    "start": "none",
}
VARIANTS = tuple(name for name in FROZEN if name != "start")
_SMALL_LAST_LAYERS = (r"(?!decoder[12]/block_03/|decoder_norm/|head\d/).*",)  # of four


def get_config(arg: str = "zero_conv") -> ConfigDict:
    """Returns the settings of a variant of the table, `small-` before it for the small network."""
    small, variant = arg.startswith("small-"), arg.removeprefix("small-")
    if variant not in (*VARIANTS, *(["start"] if small else [])):
        known = ", ".join((*VARIANTS, "small-start"))
        raise ValueError(f"Unknown variant {arg!r}; known are {known}.")
    config = (align3r_small if small else align3r_vitl_512).get_config()
    network = dict(NETWORKS.get(variant, {}))
    frozen = FROZEN[variant]
    if small:
        # The anchored output of the small network would hand the prior on whatever the injection.
        network["output"] = "direct"
        frozen = _SMALL_LAST_LAYERS if variant == "last_layers" else frozen
        config.init_from = None if variant == "start" else "outputs/ablation/start"
        config.optimizer.lr = 8e-4 if variant == "start" else 4e-4
    config.network_settings = ConfigDict(network)
    # Anew, because a ConfigDict keeps the type of a field: names are text, patterns a tuple.
    config.optimizer = ConfigDict({**config.optimizer.to_dict(), "frozen": frozen})
    if not network.get("prior_branch", True) and not small:
        del config.data["prior"]
    return config
