"""Accuracy of the aligner alone: true point maps, spoiled, over one difficulty after the other.

    python -m experiments.benchmark_robustness [--output=robustness.json] [--markdown=table.md]

The pair predictions are the truth of procedural clips plus noise (`data.procedural.oracle`), so
what is measured is alignment. One axis at a time is moved away from the usual case; every case
runs with and without the flow term (DIS flow of the rendered frames). Last, what known cameras
bring: true intrinsics, true poses, or poses wrong by 1 degree and 5 % of the path as soft priors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from absl import flags
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from align3r_jax import pipeline
from align3r_jax.config import AlignmentConfig, FlowConfig, PairConfig, ReconstructConfig
from align3r_jax.structs import KnownCameras
from data.procedural import benchmark, oracle
from data.procedural import score as score_lib
from data.procedural.clip import ProceduralClip, frames_of
from experiments import cli

OUTPUT = flags.DEFINE_string("output", None, "Also write all numbers as JSON here.")
MARKDOWN = flags.DEFINE_string("markdown", None, "Also write the table here.")
FRAMES = flags.DEFINE_integer("frames", 8, "Frames of a clip.", lower_bound=4)
WIDTH = flags.DEFINE_integer(
    "width", 128, "Width in pixels; the height is 3/4 of it.", lower_bound=32
)
ITERATIONS = flags.DEFINE_integer("iterations", 300, "Alignment iterations.", lower_bound=1)

_UNIT, _SEED = 3.0, 5  # the user's world counts in thirds of a metre
_ROTATION_ERROR, _POSITION_ERROR = 1.0, 0.05  # of the soft poses: degrees, share of the spread


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table. clip: of `data.procedural.benchmark`; noise: of fields and pixels."""

    axis: str
    clip: str = "desk"
    noise: float = 0.02
    outliers: float = 0.02
    cameras: Literal["none", "intrinsics", "poses", "soft"] = "none"

    @property
    def level(self) -> str:
        """What the axis is moved to."""
        value = getattr(self, {"moving objects": "clip"}.get(self.axis, self.axis))
        return f"{100 * value:g} %" if isinstance(value, float) else str(value)


def cases() -> Iterator[Case]:
    """The usual case on every axis, and what departs from it."""
    for noise in (0.01, 0.02, 0.05, 0.1):
        yield Case("noise", noise=noise)
    for outliers in (0.0, 0.1, 0.3):
        yield Case("outliers", outliers=outliers)
    for clip in ("room", "crowded"):
        yield Case("moving objects", clip=clip)
    for cameras in ("none", "intrinsics", "poses", "soft"):
        yield Case("cameras", noise=0.05, cameras=cameras)


def user_world(clip: ProceduralClip) -> np.ndarray:
    """Returns the true poses (T, 4, 4) in another frame and unit, as a user has them."""
    rotation = Rotation.from_rotvec([0.3, 1.0, 0.2]).as_matrix()
    poses = np.tile(np.eye(4), (clip.num_frames, 1, 1))
    poses[:, :3, :3] = rotation @ clip.world_from_cam[:, :3, :3]
    poses[:, :3, 3] = _UNIT * clip.world_from_cam[:, :3, 3] @ rotation.T + [10, -4, 2]
    return poses


def known_cameras(clip: ProceduralClip, kind: str) -> KnownCameras | None:
    """Returns what the user knows: nothing, intrinsics, exact poses, or poses with errors."""
    if kind == "none":
        return None
    if kind == "intrinsics":
        return KnownCameras(intrinsics=clip.intrinsics)
    poses = user_world(clip)
    if kind == "poses":
        return KnownCameras(world_from_cam=poses)
    rng = np.random.default_rng(_SEED)
    centres = poses[:, :3, 3]
    spread = np.sqrt(((centres - centres.mean(axis=0)) ** 2).sum(-1).mean())
    poses[:, :3, 3] += _POSITION_ERROR * spread * rng.normal(size=centres.shape)
    turns = Rotation.from_rotvec(np.deg2rad(_ROTATION_ERROR) * rng.normal(size=centres.shape))
    poses[:, :3, :3] = turns.as_matrix() @ poses[:, :3, :3]
    return KnownCameras(
        world_from_cam=poses,
        rotation_deviation=_ROTATION_ERROR,
        translation_deviation=_POSITION_ERROR,
        relative_translation=True,
    )


def score(case: Case, clip: ProceduralClip, with_flow: bool, iterations: int) -> dict[str, float]:
    """Aligns one case and compares it with the truth; `scale` in the user's unit if poses known."""
    config = ReconstructConfig(
        prior="none",
        pairs=PairConfig(mode="flat"),
        flow=FlowConfig(source="dis" if with_flow else "none"),
        alignment=AlignmentConfig(iterations=iterations),
    )
    spoiled = oracle.OracleNoise(field=case.noise, pixel=case.noise / 2, outliers=case.outliers)
    scene = pipeline.reconstruct(
        frames_of(clip),
        predictor=oracle.OraclePredictor(clip, spoiled, seed=_SEED),
        cameras=known_cameras(clip, case.cameras),
        config=config,
    )
    found = score_lib.score(scene, clip)
    if case.cameras in ("poses", "soft"):
        found["scale"] = float(np.median(scene.depth / (_UNIT * clip.depth)))
    return found


def table(rows: list[dict]) -> str:
    """Returns the scores as Markdown: without the flow term / with it."""
    lines = [
        "| axis | level | moving pixels | ATE / path, % | rotation per step, deg | Abs Rel, % "
        "| focal error, % | scale error, % |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def both(row: dict, measure) -> str:
        values = [measure(row[key]) for key in ("without_flow", "with_flow")]
        return " / ".join("–" if value is None else f"{value:.2f}" for value in values)

    for row in rows:
        cells = [
            row["axis"],
            row["level"],
            f"{100 * row['moving']:.0f} %",
            both(row, lambda s: 100 * s["ate_over_path"]),
            both(row, lambda s: s["rotation_error_deg"]),
            both(row, lambda s: 100 * s["abs_rel"]),
            both(row, lambda s: 100 * abs(s["focal_ratio"] - 1)),
            both(row, lambda s: 100 * abs(s["scale"] - 1) if "scale" in s else None),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    del argv
    clips: dict[str, ProceduralClip] = {}
    rows = []
    for case in tqdm(list(cases()), desc="cases"):
        if case.clip not in clips:
            clips[case.clip] = benchmark.render(
                case.clip, frames=FRAMES.value, height=3 * WIDTH.value // 4, width=WIDTH.value
            )
        clip = clips[case.clip]
        scores = {
            name: score(case, clip, with_flow, ITERATIONS.value)
            for name, with_flow in (("without_flow", False), ("with_flow", True))
        }
        moving = float(clip.dynamic_mask.mean())
        rows.append(dataclasses.asdict(case) | {"level": case.level, "moving": moving} | scores)
    print(f"\nProcedural benchmark, version {benchmark.VERSION}; without / with the flow term\n")
    print(table(rows))
    if MARKDOWN.value:
        Path(MARKDOWN.value).write_text(table(rows) + "\n")
    if OUTPUT.value:
        content = {"version": benchmark.VERSION, "frames": FRAMES.value, "rows": rows}
        Path(OUTPUT.value).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    cli.run(main)
