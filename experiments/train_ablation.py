"""Does the depth prior help a trained network, and what has to train? Every variant, one table.

    python -m experiments.train_ablation --workdir=outputs/ablation
    python -m experiments.train_ablation --workdir=outputs/quick --steps=50 --start_steps=50 \
        --variants=zero_conv,no_prior

The variants of `experiments/configs/ablation.py` with the small network on rendered pairs: first
`start`, without prior, then from it every variant, one after the other, with the same budget, seed
and batches. Scored pair by pair on fixed unseen pairs, with and without the prior. The same command
goes on where it was stopped (Ctrl-C, SIGTERM); finished variants are not trained again.
Hardware and time: two CPU cores, about 1.2 CPU seconds per step and variant at the default size.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from align3r_jax.evaluation import tables
from experiments import ablation_training, cli, train_setup

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all trainings.", required=True)
VARIANTS = flags.DEFINE_list("variants", None, "Names of variants; default: all.")
STEPS = flags.DEFINE_integer("steps", 1500, "Updates of every variant.", lower_bound=1)
START_STEPS = flags.DEFINE_integer(
    "start_steps", 1500, "Updates of the network they start from.", lower_bound=1
)
SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of pairs and of what is drawn fresh, any number from 0.", lower_bound=0
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Pairs of an update.", lower_bound=1)
HEIGHT = flags.DEFINE_integer("height", 128, "Of the pairs, in pixels.", lower_bound=16)
WIDTH = flags.DEFINE_integer("width", 160, "Of the pairs, in pixels.", lower_bound=16)
PAIRS = flags.DEFINE_integer(
    "pairs", 64, "Unseen pairs to score on, rounded up to whole batches of 16.", lower_bound=1
)


def main(argv: Sequence[str]) -> int:
    del argv
    variants = ablation_training.check_variants(VARIANTS.value or ())
    size = min(PAIRS.value, 16)
    budget = ablation_training.Budget(
        steps=STEPS.value,
        start_steps=START_STEPS.value,
        seed=SEED.value,
        batch_size=BATCH_SIZE.value,
        resolution=(HEIGHT.value, WIDTH.value),
        evaluation=(-(-PAIRS.value // size), size),
    )
    folder = train_setup.work_folder(WORKDIR.value)
    results = ablation_training.run(folder, budget, variants)
    if results is None:
        return cli.INTERRUPTED
    print(f"\n{tables.to_markdown([ablation_training.table(results)])}\nWritten to {folder}.")
    return 0


if __name__ == "__main__":
    cli.run(main)
