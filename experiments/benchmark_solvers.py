"""Both solvers of the alignment on procedural clips whose pair predictions have known errors.

    python -m experiments.benchmark_solvers [--output=solvers.json] [--clips=desk,crowded]

Pair predictions are the truth under noise (`data.procedural.oracle`): noise x outliers x moving
objects (the clips differ in how much moves) x with and without optical flow (DIS). Every row is
the mean over the clips. Times are CPU-seconds of the alignment stage, compilation left out by a
run before.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from align3r_jax import pairing, pipeline
from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import finish
from align3r_jax.config import AlignmentConfig, FlowConfig, PairConfig
from align3r_jax.priors import optical_flow
from data.procedural import benchmark, oracle
from data.procedural import score as score_lib
from data.procedural.clip import ProceduralClip, frames_of
from experiments import cli

OUTPUT = flags.DEFINE_string("output", None, "Also write all numbers as JSON here.")
CLIPS = flags.DEFINE_list("clips", ["desk", "crowded"], "Names of benchmark clips.")
FRAMES = flags.DEFINE_integer("frames", 8, "Frames of a clip.", lower_bound=3)
HEIGHT = flags.DEFINE_integer("height", 96, "Rows; the width is a third more.", lower_bound=48)
GRAPH = flags.DEFINE_string("graph", "swinstride-3-noncyclic", "Pair graph.")

SOLVERS = ("adam", "gauss_newton")
NOISE = {
    "low": oracle.OracleNoise(),
    "high": oracle.OracleNoise(field=0.05, pixel=0.02),
}
OUTLIERS = (0.01, 0.1)
_COMPILED: set[tuple[bool, str]] = set()


def score(
    clip: ProceduralClip, noise: oracle.OracleNoise, with_flow: bool, solver: str
) -> dict[str, float]:
    """Aligns one clip and compares it with the truth; the second of two runs is timed.

    All clips have the same shapes, so the first run of a kind is the only one that compiles.
    """
    frames = pipeline.as_frames(frames_of(clip))
    graph = pairing.make_pairs(frames.num_frames, PairConfig(graph=GRAPH.value))
    predictor = oracle.OraclePredictor(clip, noise)
    predictions = predictor.predict(predictor.prepare(frames, None, None), graph)
    flow = None
    if with_flow:
        source = optical_flow.make_source(FlowConfig(), frames)
        flow = source.directed(frames, pairing.directed_pairs(graph))
    config = AlignmentConfig(solver=solver, smoothness_weight=0.01)
    kind = (with_flow, solver)
    if kind not in _COMPILED:
        align_lib.align_graph(predictions, graph, flow, config)
        _COMPILED.add(kind)
    start = time.process_time()
    result = align_lib.align_graph(predictions, graph, flow, config)
    seconds = time.process_time() - start
    scene = finish.to_scene(result, frames, config)
    scores = score_lib.score(scene, clip)
    return {
        "loss": float(np.asarray(result.trace["total"])[-1]),
        "ate": scores["ate"],
        "rotation_error_deg": scores["rotation_error_deg"],
        "abs_rel": scores["abs_rel"],
        "mask_iou": scores["mask_iou"] if with_flow else float("nan"),
        "cpu_seconds": seconds,
    }


def table(rows: dict[tuple[str, ...], dict[str, float]]) -> str:
    """Returns the rows as a Markdown table."""
    names = ("loss", "ate", "rotation_error_deg", "abs_rel", "mask_iou", "cpu_seconds")
    titles = ("loss", "ATE", "rotation / deg", "Abs Rel", "mask IoU", "CPU-s")
    lines = ["| noise | outliers | flow | solver | " + " | ".join(titles) + " |"]
    lines.append("|" + "---|" * (4 + len(names)))
    for key, values in rows.items():
        cells = [f"{values[name]:.4f}" for name in names]
        lines.append("| " + " | ".join([*key, *cells]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    del argv
    size = {"frames": FRAMES.value, "height": HEIGHT.value, "width": HEIGHT.value * 4 // 3}
    clips = {name: benchmark.render(name, **size) for name in CLIPS.value}
    cases = list(itertools.product(NOISE, OUTLIERS, (False, True), SOLVERS))
    scores: dict[str, dict[str, dict[str, float]]] = {}
    rows = {}
    with tqdm(total=len(cases) * len(clips), desc="alignments") as progress:
        for noise, outliers, with_flow, solver in cases:
            key = (noise, f"{outliers:.0%}", "yes" if with_flow else "no", solver)
            setting = dataclasses.replace(NOISE[noise], outliers=outliers)
            found = {}
            for name, clip in clips.items():
                found[name] = score(clip, setting, with_flow, solver)
                progress.update()
            scores[" ".join(key)] = found
            rows[key] = {
                name: float(np.mean([values[name] for values in found.values()]))
                for name in next(iter(found.values()))
            }
    print(f"\n{', '.join(clips)}; {size}; {GRAPH.value}\n\n{table(rows)}")
    for name in clips:
        by_clip = {tuple(key.split()): found[name] for key, found in scores.items()}
        print(f"\n{name}\n\n{table(by_clip)}")
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(scores, indent=1))


if __name__ == "__main__":
    cli.run(main)
