"""Errors on fixed, unseen procedural clips: defaults, and with a user's depth prior.

    python -m experiments.benchmark_accuracy [--output=accuracy.json] [--clips=desk,room] \
        [--priors=none,user] [--standing]

The clips (`data.procedural.benchmark`) have textures and scenes that no shipped network was
trained on. Nothing of the truth is used but for the scores; the user's prior is the true depth
under the noise model of `data.procedural.noise`. Baselines stand beside every number.
--standing instead repeats the first frame of every clip, with fresh noise: a camera that does not
move, so that no parallax and only the default prior tells depth.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from align3r_jax import pipeline
from align3r_jax.config import ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.evaluation import depth as depth_metrics
from align3r_jax.evaluation import summary
from align3r_jax.structs import DepthPrior
from data.procedural import benchmark
from data.procedural import score as score_lib
from data.procedural.clip import ProceduralClip, frames_of
from experiments import cli

OUTPUT = flags.DEFINE_string("output", None, "Also write all numbers as JSON here.")
CLIPS = flags.DEFINE_list("clips", None, "Names of clips; default: all.")
PRIORS = flags.DEFINE_list("priors", ["none", "user"], "With which depth priors.")
STANDING = flags.DEFINE_bool(
    "standing", False, "Score the depth of a camera that stands still, with the default prior and "
    "with none.",
)  # fmt: skip
_REPEATED, _NOISE = 6, 2.0  # frames; deviation of their noise in grey levels
_SETTINGS = {"none": ("defaults", False), "user": ("user prior", True)}


def score(clip: ProceduralClip, prior: DepthPrior | None) -> dict[str, float]:
    """Reconstructs a clip with default settings and compares it with the truth."""
    scene = pipeline.reconstruct(frames_of(clip), prior=prior, config=ReconstructConfig())
    return score_lib.score(scene, clip, prior_depth=None if prior is None else prior.depth)


def standing(name: str) -> dict[str, float]:
    """Returns Abs Rel of one repeated frame by default, without a prior, and of a plane."""
    clip = benchmark.render(name, frames=2)
    noise_of = np.random.default_rng(0).normal(0, _NOISE, (_REPEATED, *clip.images.shape[1:]))
    images = np.clip(clip.images[:1] + noise_of, 0, 255).astype(np.uint8)
    truth = np.repeat(clip.depth[:1], _REPEATED, axis=0)
    found = {
        title: np.asarray(pipeline.reconstruct(images, config=ReconstructConfig(prior=prior)).depth)
        for title, prior in (("default", "auto"), ("no prior", "plane"))
    } | {"constant plane": np.ones_like(truth)}
    return {
        title: depth_metrics.evaluate(depth, truth, summary.ONE_SCALE).metrics["Abs Rel"]
        for title, depth in found.items()
    }


def table(scores: dict[str, dict[str, float]], with_prior: bool) -> str:
    """Returns the scores as a Markdown table; means last."""
    lines = [
        "| clip | ATE / standing | rotation / standing | ATE / path | Abs Rel | "
        + ("prior's own" if with_prior else "constant plane")
        + " | ratio | mask IoU | focal / true |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = {}
    for name, s in scores.items():
        against = s["prior_abs_rel"] if with_prior else s["constant_abs_rel"]
        rows[name] = [
            s["ate"] / s["standing_ate"],
            s["rotation_error_deg"] / s["standing_rotation_error_deg"],
            s["ate_over_path"],
            s["abs_rel"],
            against,
            s["abs_rel"] / against,
            s["mask_iou"],
            s["focal_ratio"],
        ]
    rows["**mean**"] = list(np.mean(list(rows.values()), axis=0))
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    del argv
    names = CLIPS.value or list(benchmark.names())
    unknown = sorted(set(PRIORS.value) - set(_SETTINGS))
    if unknown:
        raise UserError(f"--priors={','.join(PRIORS.value)}: expected none, user or both.")
    if STANDING.value:
        found = {name: standing(name) for name in tqdm(names, desc="clips")}
        found["mean"] = {t: float(np.mean([s[t] for s in found.values()])) for t in found[names[0]]}
        for name, row in found.items():
            print(f"{name:10s} " + "  ".join(f"{title} {v:.3f}" for title, v in row.items()))
        return
    settings = dict(_SETTINGS[name] for name in PRIORS.value)
    scores: dict[str, dict[str, dict[str, float]]] = {title: {} for title in settings}
    with tqdm(total=len(names) * len(settings), desc="clips") as progress:
        for name in names:
            clip = benchmark.render(name)
            for title, with_prior in settings.items():
                prior = benchmark.user_prior(clip, name) if with_prior else None
                scores[title][name] = score(clip, prior)
                progress.update()
    print(f"\nProcedural benchmark, version {benchmark.VERSION}")
    for title, with_prior in settings.items():
        print(f"\n{title}\n\n{table(scores[title], with_prior)}")
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(
            json.dumps({"version": benchmark.VERSION, "scores": scores}, indent=1)
        )


if __name__ == "__main__":
    cli.run(main)
