"""Compiles the pairwise network and the alignment ahead of time, to files that run without us.

    python -m experiments.export_programs --weights=align3r_small --width=224 --height=224 \
        --frames=16 --output=deployed

The folder holds the programs, the parameters, a manifest and `run_programs.py`, which needs jax and
NumPy alone (docs/performance.md#ahead-of-time).
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from align3r_jax import config as config_lib
from experiments import cli

OUTPUT = flags.DEFINE_string("output", None, "Folder to write, made new.", required=True)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output.")
WEIGHTS = flags.DEFINE_string(
    "weights", None, "Pairwise network: converted folder, official file, align3r_small, or the "
    "work folder of a training. Default: none, only the alignment is exported.",
)  # fmt: skip
WIDTH = flags.DEFINE_integer("width", 512, "Of the frames in pixels, a multiple of 16.")
HEIGHT = flags.DEFINE_integer("height", 288, "Of the frames in pixels, a multiple of 16.")
PAIR_BATCH = flags.DEFINE_integer(
    "pair_batch", 4, "Frames and pairs of one call, unless the one who loads it asks otherwise.",
    lower_bound=1,
)  # fmt: skip
FRAMES = flags.DEFINE_integer(
    "frames", 0, "Longest clip of the alignment in frames, rounded up to a bucket (16, 20, 24, "
    "...); 0: the alignment is not exported.", lower_bound=0,
)  # fmt: skip
GRAPH = flags.DEFINE_string("graph", config_lib.PairConfig.graph, "Pair graph of the alignment.")
FLOW = flags.DEFINE_bool("flow", False, "The alignment takes optical flow too.")
SOLVER = flags.DEFINE_enum(
    "solver", "gauss_newton", ["adam", "gauss_newton"], "Of the alignment, as of reconstruct."
)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Network compute type.")
PLATFORMS = flags.DEFINE_list(
    "platforms", ["cpu", "cuda", "tpu"], "What the programs run on: some of cpu, cuda, rocm, tpu."
)


def main(argv: Sequence[str]) -> None:
    del argv
    import align3r_jax
    from align3r_jax.programs import export

    settings = export.Settings(
        height=HEIGHT.value,
        width=WIDTH.value,
        batch=PAIR_BATCH.value,
        compute_dtype=DTYPE.value,
        frames=FRAMES.value,
        graph=GRAPH.value,
        flow=FLOW.value,
        alignment=config_lib.AlignmentConfig(solver=SOLVER.value),
        platforms=tuple(PLATFORMS.value),
    )
    network = align3r_jax.load(WEIGHTS.value) if WEIGHTS.value else None
    manifest = export.export_programs(OUTPUT.value, network, settings, overwrite=OVERWRITE.value)
    print(
        f"Written to {OUTPUT.value}: {', '.join(sorted(manifest['programs']))} for frames of "
        f"{WIDTH.value}x{HEIGHT.value} on {', '.join(settings.platforms)}, and run_programs.py, "
        "which loads and runs them with jax and NumPy alone."
    )


if __name__ == "__main__":
    cli.run(main)
