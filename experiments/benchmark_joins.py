"""How well the clips of long videos fit together: apart, joined, refined together.

    python -m experiments.benchmark_joins [--videos=0,1,2,3 --frames=50 --field=0.01]

Procedural videos of different places (`data.procedural.make_long`, 128x96); pairs are the truth
with a scale of their own (30 %), a smooth error (`--field`), noise and outliers; no flow. Prints,
for each stage of the hierarchical alignment, the spread of the frames' depth scales, their step at
the borders of clips, and the errors of the cameras. About three minutes of CPU time a video.
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
from align3r_jax.errors import UserError
from align3r_jax.evaluation import trajectory
from data.procedural import clip, make_long, oracle
from experiments import cli

VIDEOS = flags.DEFINE_list(
    "videos", ["0", "1", "2", "3"], "Numbers of the videos: 0 a laid table, then drawn: a "
    "table-top, a room, outdoors, in turn.",
)  # fmt: skip
FRAMES = flags.DEFINE_integer("frames", 50, "Length of a video.", lower_bound=12)
FIELD = flags.DEFINE_float(
    "field", 0.01, "Smooth error of every point map, a share of its depth.", lower_bound=0.0
)


STAGES = ("clips as they are", "scale carried across", "refined together")


def measures(
    result: Any, truth: clip.ProceduralClip, clips: Sequence[range]
) -> tuple[float, float, float, float, float, float]:
    """Spread of scales, step at borders, step inside (shares); ATE over a standing camera's;
    RPE over the median step (shares); rotation per step, degrees."""
    geometry = variables.decode(result.variables, AlignmentConfig(), truth.depth.shape[1:])
    ratio = np.asarray(geometry.depth) / truth.depth
    scale = np.median(ratio.reshape(len(ratio), -1), axis=1)
    steps = np.abs(np.diff(np.log(scale)))
    border = np.zeros(len(steps), bool)
    border[[run[0] - 1 for run in clips[1:]]] = True
    cameras = trajectory.evaluate(np.asarray(geometry.world_from_cam), truth.world_from_cam)
    moved = np.linalg.norm(np.diff(truth.world_from_cam[:, :3, 3], axis=0), axis=-1)
    return (
        float(scale.std() / scale.mean()),
        float(steps[border].mean()),
        float(steps[~border].mean()),
        cameras.ate / trajectory.standing_camera(truth.world_from_cam).ate,
        cameras.rpe_trans / float(np.median(moved)),
        cameras.rpe_rot_deg,
    )


def align(
    truth: clip.ProceduralClip, field: float, seed: int
) -> dict[str, tuple[float, float, float, float, float, float]]:
    """Aligns a video clip by clip; stage -> `measures`. seed: of the errors of the pairs."""
    predictor = oracle.OraclePredictor(truth, oracle.OracleNoise(field=field), seed)
    state = predictor.prepare(clip.frames_of(truth), None, None)
    pairs, config = PairConfig(), AlignmentConfig()
    parts: dict[str, Any] = {}

    def keep(name: str, compute: Any) -> Any:
        parts[name] = compute()
        return parts[name]

    refined = hierarchical.align_video(
        truth.num_frames,
        predict=lambda graph: predictor.predict(state, graph),
        flow_of=lambda graph: None,
        pairs=pairs,
        config=config,
        keep=keep,
    )
    keys = parts["key frames"]
    runs = [run for part in parts.values() for run in getattr(part, "results", ())]
    clips = pairing.clips(truth.num_frames, pairing.clip_size(truth.num_frames, pairs.clip_size))
    apart, carried = (
        hierarchical.joined(runs, keys, dataclasses.replace(config, join_rescale=rescale))
        for rescale in (False, True)
    )
    return {
        stage: measures(result, truth, clips)
        for stage, result in zip(STAGES, (apart, carried, refined))
    }


def line(name: str, stage: str, values: Sequence[float]) -> str:
    """Returns one line of the table."""
    spread, border, inside, ate, rpe, rotation = values
    return (
        f"| {name} | {stage} | {100 * spread:.2f} % | {100 * border:.2f} % | {100 * inside:.2f} % "
        f"| {100 * ate:.2f} % | {100 * rpe:.1f} % | {rotation:.3f}° |"
    )


def main(argv: Sequence[str]) -> None:
    del argv
    if not all(number.isdecimal() for number in VIDEOS.value):
        raise UserError(f"--videos={','.join(VIDEOS.value)}: expected numbers, such as 0,1,2.")
    print(
        "| video | | spread of scales | step at borders | step inside | ATE / standing "
        "| RPE / step | rotation per step |\n|---|---|---|---|---|---|---|---|"
    )
    found: dict[str, list[Sequence[float]]] = {stage: [] for stage in STAGES}
    for number in map(int, VIDEOS.value):
        truth = make_long.render_long(FRAMES.value, number=number)
        for stage, values in align(truth, FIELD.value, number).items():
            print(line(str(number), stage, values), flush=True)
            found[stage].append(values)
    for stage, rows in found.items():
        print(line("**mean**", stage, np.mean(rows, axis=0)))


if __name__ == "__main__":
    cli.run(main)
