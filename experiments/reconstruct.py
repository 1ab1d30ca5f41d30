"""The main job: a video in; depth, cameras, motion masks and a point cloud out.

    python -m experiments.reconstruct --video=my.mp4 --output=outputs/my

Works without weights (optical flow and geometry), better with a depth prior (--prior=files:DIR)
and with official weights (--weights=DIR, see docs/weights.md). docs/outputs.md lists what it
writes. Interrupted runs continue with --resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from align3r_jax.io import scene_folder
from experiments import cli, reconstruct_flags, reconstruct_video

flags.adopt_module_key_flags(reconstruct_flags)  # --help lists them


def main(argv: Sequence[str]) -> None:
    del argv
    source, output = reconstruct_flags.VIDEO.value, Path(reconstruct_flags.OUTPUT.value)
    scene_folder.check_output(output, overwrite=reconstruct_flags.OVERWRITE.value)
    settings = reconstruct_flags.settings_from_flags()
    focal = reconstruct_video.focal_of_pictures(source)
    models = reconstruct_video.open_models(settings, focal)
    summary = reconstruct_video.reconstruct_video(source, output, settings, models)
    print(_closing(output, summary))


def _closing(output: Path, summary: dict) -> str:
    from experiments import truth as truth_lib

    lines = ["", *(f"Note: {sentence}" for sentence in summary["limits"])]
    if "errors" in summary:
        lines += ["Errors against the truth of this video:"]
        lines += [truth_lib.sentence(name, entry) for name, entry in summary["errors"].items()]
    lines += [
        f"Written to {output}: depth/, conf/, dynamic_mask/, rgb/, pred_traj.txt, "
        "pred_intrinsics.txt, points.ply, scene.glb, depth.mp4, summary.json",
        f"Look at: {output / 'report.html'}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
