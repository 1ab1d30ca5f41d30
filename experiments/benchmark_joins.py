"""How well the clips of a long video fit together: apart, joined, refined together.

    python -m experiments.benchmark_joins [--frames=50 --field=0.01]

A procedural video (`data.procedural.make_long`, 128x96); pairs are the truth with a scale of their
own (30 %), a smooth error (`--field`), noise and outliers; no flow. Prints, for each stage of the
hierarchical alignment, the spread of the frames' depth scales, their step at the borders of clips,
and the errors of the cameras. About three minutes of CPU time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from align3r_jax import pairing
from align3r_jax.alignment import hierarchical, variables
from align3r_jax.config import AlignmentConfig, PairConfig
from align3r_jax.evaluation import trajectory
from data.procedural import clip, make_long, oracle
from experiments import cli

FRAMES = flags.DEFINE_integer("frames", 50, "Length of the video.", lower_bound=12)
FIELD = flags.DEFINE_float("field", 0.01, "Smooth error of every point map.", lower_bound=0.0)


def row(name: str, result: Any, truth: clip.ProceduralClip, clips: Sequence[range]) -> str:
    """Returns one line of the table."""
    geometry = variables.decode(result.variables, AlignmentConfig(), truth.depth.shape[1:])
    ratio = np.asarray(geometry.depth) / truth.depth
    scale = np.median(ratio.reshape(len(ratio), -1), axis=1)
    steps = np.abs(np.diff(np.log(scale)))
    border = np.zeros(len(steps), bool)
    border[[run[0] - 1 for run in clips[1:]]] = True
    cameras = trajectory.evaluate(np.asarray(geometry.world_from_cam), truth.world_from_cam)
    return (
        f"| {name} | {100 * scale.std() / scale.mean():.2f} % | {100 * steps[border].mean():.2f} % "
        f"| {100 * steps[~border].mean():.2f} % | {1000 * cameras.ate:.2f} mm "
        f"| {1000 * cameras.rpe_trans:.2f} mm | {cameras.rpe_rot_deg:.3f}° |"
    )


def main(argv: Sequence[str]) -> None:
    del argv
    truth = make_long.render_long(FRAMES.value)
    predictor = oracle.OraclePredictor(truth, oracle.OracleNoise(field=FIELD.value))
    state = predictor.prepare(clip.frames_of(truth), None, None)
    pairs, config = PairConfig(), AlignmentConfig()
    parts: dict[str, Any] = {}

    def keep(name: str, compute: Any) -> Any:
        parts[name] = compute()
        return parts[name]

    refined = hierarchical.align_video(
        FRAMES.value,
        predict=lambda graph: predictor.predict(state, graph),
        flow_of=lambda graph: None,
        pairs=pairs,
        config=config,
        keep=keep,
    )
    keys = parts["key frames"]
    runs = [run for part in parts.values() for run in getattr(part, "results", ())]
    clips = pairing.clips(FRAMES.value, pairing.clip_size(FRAMES.value, pairs.clip_size))
    print("| | spread of scales | step at borders | step inside | ATE | RPE | rotation per step |")
    print("|---|---|---|---|---|---|---|")
    for name, rescale in (("clips as they are", False), ("scale carried across", True)):
        chosen = dataclasses.replace(config, join_rescale=rescale)
        print(row(name, hierarchical.joined(runs, keys, chosen), truth, clips))
    print(row("refined together", refined, truth, clips))


if __name__ == "__main__":
    cli.run(main)
