"""Draws the report and the point clouds of a result again, with other points, and opens it.

    python -m experiments.report outputs/my --min_confidence=2 --open

Nothing is computed anew: `report.html`, `points.ply` and `scene.glb` are replaced from the depth,
cameras and masks in the folder, in seconds.
"""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from align3r_jax.errors import UserError
from align3r_jax.io import pointcloud, scene_folder
from align3r_jax.viewer import report
from experiments import cli

_DEFAULT = pointcloud.PointFilter()
MIN_CONFIDENCE = flags.DEFINE_float(
    "min_confidence", _DEFAULT.min_confidence, "Pixels below it become no points."
)
EDGE = flags.DEFINE_float(
    "edge", _DEFAULT.edge, "How sharply inverse depth may bend (a fraction of it); 0: any.",
    lower_bound=0,
)  # fmt: skip
MOVING = flags.DEFINE_bool("moving", False, "Moving things in points.ply and scene.glb as well.")
MAX_POINTS = flags.DEFINE_integer(
    "max_points", _DEFAULT.max_points, "Points in points.ply and scene.glb.", lower_bound=1
)
OPEN = flags.DEFINE_bool("open", False, "Open the report in the web browser.")


def main(argv: Sequence[str]) -> None:
    """Rewrites the three files and says where they are."""
    if len(argv) != 2:
        raise UserError(
            "Name the result, the folder that was given as --output of the reconstruction: "
            "python -m experiments.report outputs/my."
        )
    folder = Path(argv[1])
    scene = scene_folder.load_scene(folder)
    rules = pointcloud.PointFilter(
        min_confidence=MIN_CONFIDENCE.value,
        edge=EDGE.value,
        dynamic="keep" if MOVING.value else "drop",
        max_points=MAX_POINTS.value,
    )
    count = scene_folder.write_points(folder, scene, rules)
    path = report.write_report(folder, rules=rules)
    print(f"{count:,} points in {folder / scene_folder.POINTS} and {folder / scene_folder.GLB}")
    print(f"Look at: {path}")
    if OPEN.value:
        webbrowser.open(path.resolve().as_uri())


if __name__ == "__main__":
    cli.run(main, arguments=1)
