"""Both solvers of the alignment on procedural clips whose pair predictions have known errors.

    python -m experiments.benchmark_solvers [--output=solvers.json] [--moving=none,few,many]

Pair predictions are the truth under noise (`data.procedural.oracle`): moving objects x noise x
outliers x with and without optical flow (DIS). Every number is a mean over the clips of its row:
two with nothing but the camera moving, the same two with their movers, one where 12-35 % of the
pixels move. Times are CPU-seconds of the alignment stage, compilation left out by a run before.
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
from align3r_jax.errors import UserError
from align3r_jax.priors import optical_flow
from data.procedural import benchmark, oracle
from data.procedural import score as score_lib
from data.procedural.clip import ProceduralClip, frames_of
from experiments import cli

OUTPUT = flags.DEFINE_string("output", None, "Also write all numbers as JSON here.")
MOVING = flags.DEFINE_list("moving", ["none", "few", "many"], "How much moves.")
FRAMES = flags.DEFINE_integer("frames", 8, "Frames of a clip.", lower_bound=3)
HEIGHT = flags.DEFINE_integer(
    "height", 96, "Height in pixels; the width is a third more.", lower_bound=48
)
GRAPH = flags.DEFINE_string("graph", "swinstride-3-noncyclic", "Pair graph.")

SOLVERS = ("adam", "gauss_newton")
# How much moves -> benchmark clips, and whether their movers stand still.
CLIPS = {
    "none": (("desk", True), ("room", True)),
    "few": (("desk", False), ("room", False)),
    "many": (("crowded", False),),
}
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
        "mask_iou": scores["mask_iou"] if with_flow and clip.dynamic_mask.any() else float("nan"),
        "cpu_seconds": seconds,
    }


COLUMNS = (
    ("loss", "loss", 4),
    ("ate", "ATE / mm", 2),
    ("rotation_error_deg", "rotation / deg", 4),
    ("abs_rel", "Abs Rel / %", 2),
    ("mask_iou", "mask IoU", 3),
    ("cpu_seconds", "CPU-s", 1),
)
_UNITS = {"ate": 1000.0, "abs_rel": 100.0}


def table(rows: dict[tuple[str, ...], dict[str, dict[str, float]]]) -> str:
    """Returns a Markdown table: (moving, noise, outliers, flow) -> solver -> numbers.

    Every cell is Adam's number, then Gauss-Newton's.
    """
    titles = ["moving", "noise", "outliers", "flow", *(title for _, title, _ in COLUMNS)]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for key, by_solver in rows.items():
        cells = []
        for name, _, digits in COLUMNS:
            found = [by_solver[solver][name] * _UNITS.get(name, 1.0) for solver in SOLVERS]
            known = np.isfinite(found).all()
            cells.append(" · ".join(f"{v:.{digits}f}" for v in found) if known else "–")
        lines.append("| " + " | ".join([*key, *cells]) + " |")
    return "\n".join(lines)


def mean(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns the mean of every number."""
    return {name: float(np.mean([values[name] for values in found])) for name in found[0]}


def main(argv: Sequence[str]) -> None:
    del argv
    unknown = sorted(set(MOVING.value) - set(CLIPS))
    if unknown:
        raise UserError(f"--moving={','.join(MOVING.value)}: expected some of {', '.join(CLIPS)}.")
    size = {"frames": FRAMES.value, "height": HEIGHT.value, "width": HEIGHT.value * 4 // 3}
    cases = list(itertools.product(NOISE, OUTLIERS, (False, True)))
    rows: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
    total = len(cases) * len(SOLVERS) * sum(len(CLIPS[level]) for level in MOVING.value)
    with tqdm(total=total, desc="alignments") as progress:
        for level in MOVING.value:
            clips = [benchmark.render(name, still=still, **size) for name, still in CLIPS[level]]
            for noise, outliers, with_flow in cases:
                setting = dataclasses.replace(NOISE[noise], outliers=outliers)
                found: dict[str, list[dict[str, float]]] = {solver: [] for solver in SOLVERS}
                for clip, solver in itertools.product(clips, SOLVERS):
                    found[solver].append(score(clip, setting, with_flow, solver))
                    progress.update()
                key = (level, noise, f"{outliers:.0%}", "yes" if with_flow else "no")
                rows[key] = {solver: mean(values) for solver, values in found.items()}
    rows[("**all**", "", "", "")] = {
        solver: mean([by_solver[solver] for by_solver in rows.values()]) for solver in SOLVERS
    }
    print(f"\n{size}; {GRAPH.value}; Adam · Gauss-Newton\n\n{table(rows)}")
    if OUTPUT.value:
        named = {" ".join(key).strip(): by_solver for key, by_solver in rows.items()}
        Path(OUTPUT.value).write_text(json.dumps(named, indent=1))


if __name__ == "__main__":
    cli.run(main)
