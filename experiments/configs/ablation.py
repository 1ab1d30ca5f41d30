"""The ablations of the papers' tables, one training per variant.

Command: python -m experiments.train --config=experiments/configs/ablation.py:no_prior
    --workdir=outputs/no_prior (roots as in align3r_vitl_512.py); with the small network on rendered
    pairs, from scratch: --config=experiments/configs/ablation.py:small-no_prior

| variant | what differs from the recipe of Align3R (of `align3r_small` behind `small-`) |
|---|---|
| zero_conv | nothing (small: points are predicted directly, as in all small variants) |
| concat | the prior's z is a fourth channel of the image, there is no branch |
| no_prior | no prior |
| full | everything trains |
| last_layers | the last four blocks of both decoders, what follows them, and the heads; no prior |
| decoder_and_head | what MonST3R trains: all but the encoder |
| decoder_only | decoders and prior branch alone |
| head_only | heads alone |

Hardware and time: as align3r_vitl_512.py and align3r_small.py.
Expected, Align3R on Sintel, Abs Rel of video depth (sources in evaluation/published.json):
    zero_conv 0.263, no_prior 0.306, full 0.310, last_layers 0.319, concat 0.399.
    MonST3R's table, with its own recipe: decoder_and_head 0.335, full 0.352, head_only 0.394.
    Not run here at full size.
"""

from ml_collections import ConfigDict

from experiments.configs import align3r_small, align3r_vitl_512

NETWORKS = {
    "zero_conv": {},
    "concat": {"prior_injection": "concat"},
    "no_prior": {"prior_branch": False},
    "last_layers": {"prior_branch": False},
}
FROZEN = {
    "full": "none",
    "decoder_and_head": "encoder",
    "decoder_only": "decoder_only",
    "head_only": "head_only",
    "last_layers": (r"(?!decoder[12]/block_(08|09|10|11)/|decoder_norm/|head\d/).*",),
}
VARIANTS = tuple(dict.fromkeys((*NETWORKS, *FROZEN)))


def get_config(arg: str = "zero_conv") -> ConfigDict:
    """Returns the settings of a variant of the table, `small-` before it for the small network."""
    small, variant = arg.startswith("small-"), arg.removeprefix("small-")
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {arg!r}; known are {', '.join(VARIANTS)}.")
    config = (align3r_small if small else align3r_vitl_512).get_config()
    network = dict(NETWORKS.get(variant, {}))
    if small:
        # The anchored output of the small network would hand the prior on whatever the injection.
        network["output"] = "direct"
    config.network_settings = ConfigDict(network)
    if variant in FROZEN:
        # Anew, because a ConfigDict keeps the type of a field: names are text, patterns a tuple.
        config.optimizer = ConfigDict({**config.optimizer.to_dict(), "frozen": FROZEN[variant]})
    if not network.get("prior_branch", True) and not small:
        del config.data["prior"]
    return config
