"""Real-time mode beside the aligned one: errors on the fixed procedural clips, seconds per frame.

    python -m experiments.benchmark_feedforward [--clips=desk,room] [--output=real_time.json]

The clips, the truth and the user's noisy prior are those of `experiments.benchmark_accuracy`. The
real-time mode sees the frames one after the other and never looks back. `default` has the prior
that it takes by itself, `plane` none, `user` a user's. `oracle` takes the pairs from the truth plus
noise (`data.procedural.oracle`) instead of flow: what is lost there is lost by not aligning.
CPU-seconds are those of the process, without compiling (the first three frames).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from align3r_jax import pipeline
from align3r_jax.config import FlowConfig, PairConfig, ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.feedforward import engines, run
from align3r_jax.predictors.protocol import Predictor
from align3r_jax.priors import optical_flow
from align3r_jax.structs import DepthPrior
from data.procedural import benchmark, oracle
from data.procedural import score as score_lib
from data.procedural.clip import ProceduralClip, frames_of
from experiments import cli

OUTPUT = flags.DEFINE_string("output", None, "Also write all numbers as JSON here. Default: no.")
CLIPS = flags.DEFINE_list("clips", None, "Names of clips; default: all.")
CASES = flags.DEFINE_list(
    "cases", ["default", "plane", "user", "oracle"],
    "The prior that is taken by default, none, the user's prior, or pairs from the truth.",
)  # fmt: skip
ALIGNED = flags.DEFINE_bool("aligned", True, "Run the aligned mode on the same clips too.")
_PRIOR_OF = {"default": "auto", "plane": "plane", "user": "auto", "oracle": "none"}
_COMPILING = 3  # frames
_MEASURES = ("ATE / standing", "rotation / standing", "Abs Rel", "mask IoU", "focal / true")


def measures(scores: dict[str, float]) -> list[float]:
    """Returns the columns `_MEASURES` of `data.procedural.score.score`."""
    return [
        scores["ate"] / scores["standing_ate"],
        scores["rotation_error_deg"] / scores["standing_rotation_error_deg"],
        scores["abs_rel"],
        scores["mask_iou"],
        scores["focal_ratio"],
    ]


def real_time(
    clip: ProceduralClip, spec: str, prior: DepthPrior | None, predictor: Predictor | None
) -> dict[str, float]:
    """Returns the scores of the real-time mode, and `cpu_seconds_per_frame`.

    spec: of the prior (`config.prior`), where none is given.
    """
    frames = frames_of(clip)
    config = ReconstructConfig(prior=spec, pairs=PairConfig(mode="feedforward"))
    _, prior_of = run.prior_maker(config, None, None, lambda sentence: None)
    engine: engines.Engine
    if predictor is None:
        source = optical_flow.make_source(config.flow, frames)
        engine = engines.make(config, model=None, source=source, size=frames.size)
    else:
        state = predictor.prepare(frames, None, None)
        engine = engines.predictor_engine(predictor, state, frames.num_frames, config)
    results, seconds = [], []
    for index, image in enumerate(frames.images):
        begun = time.process_time()
        if prior is None:
            given = prior_of(run.of_frame(frames, index), None)
        else:
            given = run.prior_of_frame(prior, index)
        results.append(engine.push(image, given))
        seconds.append(time.process_time() - begun)
    scores = score_lib.score(run.to_scene(results, frames), clip)
    anchors = {int(result.anchor) for result in results}
    lost = sum(not result.good for result in results)
    return scores | {
        "cpu_seconds_per_frame": float(np.median(seconds[_COMPILING:])),
        "anchors": len(anchors),
        "lost": lost,
    }


def aligned(
    clip: ProceduralClip, spec: str, prior: DepthPrior | None, predictor: Predictor | None
) -> dict[str, float]:
    """Returns the same of the aligned mode with default settings; compiling is in its seconds."""
    config = ReconstructConfig(prior=spec, flow=FlowConfig())
    begun = time.process_time()
    scene = pipeline.reconstruct(frames_of(clip), prior=prior, predictor=predictor, config=config)
    spent = time.process_time() - begun
    return score_lib.score(scene, clip) | {"cpu_seconds_per_frame": spent / clip.num_frames}


def table(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """Returns clip -> mode -> scores as Markdown, "real time / aligned"; means last."""
    modes = list(next(iter(scores.values())))
    lines = [
        "| clip | " + " | ".join(_MEASURES) + " | CPU-s per frame |",
        "|---|" + "---|" * (len(_MEASURES) + 1),
    ]
    rows = {
        name: np.array([[*measures(s), s["cpu_seconds_per_frame"]] for s in by_mode.values()])
        for name, by_mode in scores.items()
    }
    rows["**mean**"] = np.mean(list(rows.values()), axis=0)
    for name, values in rows.items():
        cells = [" / ".join(f"{values[m, k]:.3f}" for m in range(len(modes))) for k in range(6)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    del argv
    names = CLIPS.value or list(benchmark.names())
    if set(CASES.value) - set(_PRIOR_OF):
        raise UserError(f"--cases={','.join(CASES.value)}: expected {', '.join(_PRIOR_OF)}.")
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {case: {} for case in CASES.value}
    for name in tqdm(names, desc="clips"):
        clip = benchmark.render(name)
        for case, by_clip in found.items():
            prior = benchmark.user_prior(clip, name) if case == "user" else None
            predictor = oracle.OraclePredictor(clip) if case == "oracle" else None
            spec = _PRIOR_OF[case]
            by_clip[name] = {"real time": real_time(clip, spec, prior, predictor)}
            if ALIGNED.value:
                by_clip[name]["aligned"] = aligned(clip, spec, prior, predictor)
            tqdm.write(f"{name}, {case}: {by_clip[name]}")
    print(f"\nProcedural benchmark, version {benchmark.VERSION}")
    for case, by_clip in found.items():
        print(f"\n{case}: real time{' / aligned' if ALIGNED.value else ''}\n\n{table(by_clip)}")
    if OUTPUT.value:
        content = {"version": benchmark.VERSION, "scores": found}
        Path(OUTPUT.value).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    cli.run(main)
