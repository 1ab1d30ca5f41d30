"""What every part of the method is worth: the ablations of the papers on the procedural benchmark.

    python -m experiments.ablations --output=outputs/ablations
    python -m experiments.ablations --clips=desk --variants=default,no_flow --frames=6 \
        --height=96 --width=128 --output=outputs/quick

One table, one row per variant; the numbers are means over the clips (`data.procedural.benchmark`).
The variants are those of MonST3R (no flow loss, no static mask, no smoothness, window sizes, loss
weights) and of Align3R (hierarchical alignment), as changes of the default settings. --pairs=oracle
takes pair predictions from the truth plus noise (--field) instead of the flow predictor or
--weights: that isolates the alignment, which is what the papers ablate. Finished cells are kept in
OUTPUT/cells.json and not computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from align3r_jax import config as config_lib
from align3r_jax.config import ReconstructConfig
from align3r_jax.errors import UserError
from experiments import cli
from experiments.ablation_variants import VARIANTS_OF_PAPERS, Variant, configured, table

CLIPS = flags.DEFINE_list("clips", None, "Names of clips; default: all.")
VARIANTS = flags.DEFINE_list("variants", None, "Names of variants; default: all.")
OUTPUT = flags.DEFINE_string("output", None, "Folder of results.", required=True)
FRAMES = flags.DEFINE_integer("frames", 0, "Frames of a clip; 0: all.", lower_bound=0)
HEIGHT = flags.DEFINE_integer("height", 0, "Of the clips, in pixels; 0: theirs.", lower_bound=0)
WIDTH = flags.DEFINE_integer("width", 0, "Of the clips, in pixels; 0: theirs.", lower_bound=0)
ITERATIONS = flags.DEFINE_integer(
    "iterations", 300, "Iterations of Adam, where a variant is solved by it.",
    lower_bound=1,
)  # fmt: skip
FIELD = flags.DEFINE_float(
    "field", 0.01, "Smooth error of the oracle's point maps, a share of depth; single points have "
    "half of it.",
    lower_bound=0.0,
)  # fmt: skip
PAIRS = flags.DEFINE_enum("pairs", "method", ["method", "oracle"], "Where pair predictions are of.")
WEIGHTS = flags.DEFINE_string("weights", None, "Pairwise network; default: the flow predictor.")


def score(clip: Any, variant: Variant, config: ReconstructConfig, model: Any) -> dict[str, float]:
    """Reconstructs a clip with the settings of a variant and compares it with the truth."""
    from align3r_jax import pipeline
    from data.procedural import oracle
    from data.procedural import score as score_lib
    from data.procedural.clip import frames_of

    noise = oracle.OracleNoise(field=FIELD.value, pixel=FIELD.value / 2)
    scene = pipeline.reconstruct(
        frames_of(clip),
        model=model,
        predictor=oracle.OraclePredictor(clip, noise) if PAIRS.value == "oracle" else None,
        masks=np.zeros(clip.depth.shape, bool) if variant.static else None,
        config=config,
    )
    return score_lib.score(scene, clip, with_masks=not variant.static)


def main(argv: Sequence[str]) -> None:
    del argv
    import align3r_jax
    from align3r_jax.evaluation import tables
    from align3r_jax.io import atomic
    from data.procedural import benchmark

    variants = VARIANTS.value or list(VARIANTS_OF_PAPERS)
    unknown = sorted(set(variants) - set(VARIANTS_OF_PAPERS))
    if unknown:
        raise UserError(f"Unknown variants {unknown}; known are {', '.join(VARIANTS_OF_PAPERS)}.")
    clips = CLIPS.value or list(benchmark.names())
    if PAIRS.value == "oracle" and WEIGHTS.value:
        raise UserError("--pairs=oracle predicts pairs without weights; drop --weights.")
    model = align3r_jax.load(WEIGHTS.value) if WEIGHTS.value else None
    base = config_lib.ReconstructConfig(
        prior="plane" if model is None else "auto",
        # Masks as the alignment finds them, without the help of the images.
        alignment=config_lib.AlignmentConfig(
            solver="auto", iterations=ITERATIONS.value, outline_masks=False
        ),
    )
    shrunk = {
        "frames": FRAMES.value or benchmark.FRAMES,
        "height": HEIGHT.value or benchmark.HEIGHT,
        "width": WIDTH.value or benchmark.WIDTH,
    }
    output = Path(OUTPUT.value)
    path = output / "cells.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    cells: dict[str, dict[str, dict[str, float]]] = {name: {} for name in variants}
    with tqdm(total=len(variants) * len(clips), desc="cells") as progress:
        for clip_name in clips:
            clip = None
            for name in variants:
                config = configured(VARIANTS_OF_PAPERS[name], base)
                key = _key(clip_name, name, config, shrunk, model)
                if key not in stored:
                    clip = benchmark.render(clip_name, **shrunk) if clip is None else clip
                    stored[key] = score(clip, VARIANTS_OF_PAPERS[name], config, model)
                    with atomic.told_to_user(path):
                        output.mkdir(parents=True, exist_ok=True)
                        atomic.replace_file(path, json.dumps(stored, indent=1).encode())
                cells[name][clip_name] = stored[key]
                progress.update()
    origin = model.name if model else "flow"
    if PAIRS.value == "oracle":
        origin = f"the oracle ({FIELD.value:.0%} smooth error)"
    note = (
        f"Procedural benchmark, version {benchmark.VERSION}: {', '.join(clips)}; "
        f"{shrunk['frames']} frames of {shrunk['width']}x{shrunk['height']}, "
        f"pairs predicted by {origin}. Gauss-Newton where all frames are aligned at once, "
        f"{ITERATIONS.value} iterations of Adam elsewhere."
    )
    built = [table(cells, variants, note)]
    with atomic.told_to_user(output):
        output.mkdir(parents=True, exist_ok=True)
        for file, content in (
            ("table.md", tables.to_markdown(built)),
            ("table.tex", tables.to_latex(built)),
            ("table.html", tables.to_html(built, "Ablations")),
        ):
            atomic.replace_file(output / file, content.encode())
    print(f"\n{tables.to_markdown(built)}\nWritten to {output}: table.md, table.tex, table.html")


def _key(clip: str, variant: str, config: ReconstructConfig, shrunk: dict, model: Any) -> str:
    """Names a cell and everything it depends on."""
    from data.procedural import benchmark

    facts = [
        config_lib.to_dict(config), shrunk, benchmark.VERSION, PAIRS.value, FIELD.value,
        VARIANTS_OF_PAPERS[variant].static, model.checksum if model else None,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{clip} {variant} {digest[:16]}"


if __name__ == "__main__":
    cli.run(main)
