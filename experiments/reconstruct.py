"""The main job: a video in; depth, cameras, motion masks and a point cloud out.

    python -m experiments.reconstruct --video=my.mp4 --output=outputs/my

Works without weights (optical flow and geometry), better with a depth prior (--prior=files:DIR)
and with official weights (--weights=DIR, see docs/weights.md). docs/outputs.md lists what it
writes. Interrupted runs continue with --resume.

    python -m experiments.reconstruct --videos='clips/*' --output=outputs/clips

works on many clips, each on a device of its own; the same command in several processes shares them
(docs/pods.md). Clips that fail are named in the end, the others are done; the exit code is 1 then.

    ffmpeg -i my.mp4 -f yuv4mpegpipe - | \
        python -m experiments.reconstruct --video=- --mode=feedforward --output=outputs/my

works on frames as they come, also those of a camera (--video=camera:0; docs/real_time.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from align3r_jax.errors import UserError
from align3r_jax.io import scene_folder, stream
from experiments import (
    cli,
    process_flags,
    reconstruct_flags,
    reconstruct_stream,
    reconstruct_video,
)

FAILED = 1  # exit code when clips failed
flags.adopt_module_key_flags(process_flags)
flags.adopt_module_key_flags(reconstruct_flags)  # --help lists them


def main(argv: Sequence[str]) -> int:
    del argv
    reconstruct_flags.check_mode()
    if reconstruct_flags.VIDEOS.value is not None:
        return _many(reconstruct_flags.VIDEOS.value.split(","))
    if process_flags.NUM_PROCESSES.value is not None:
        raise UserError("One video is the work of one process; several share clips of --videos.")
    source, output = reconstruct_flags.VIDEO.value, Path(reconstruct_flags.OUTPUT.value)
    scene_folder.check_output(output, overwrite=reconstruct_flags.OVERWRITE.value)
    settings = reconstruct_flags.settings_from_flags()
    focal = None if stream.is_live(source) else reconstruct_video.focal_of_pictures(source)
    division = (reconstruct_flags.PER_CLIP.value, reconstruct_flags.FSDP.value)
    models = reconstruct_video.open_models(settings, focal, division)
    if settings.config.pairs.mode == "feedforward":
        streaming = reconstruct_stream.Streaming(
            reconstruct_flags.KEEP_LAST.value, reconstruct_flags.DROP.value
        )
        summary = reconstruct_stream.reconstruct_stream(source, output, settings, models, streaming)
    else:
        summary = reconstruct_video.reconstruct_video(source, output, settings, models)
    print(_closing(output, summary))
    return 0


def _many(patterns: list[str]) -> int:
    process_flags.start(recoverable=True)
    from experiments import clips_report, devices, reconstruct_many

    output = Path(reconstruct_flags.OUTPUT.value)
    settings = reconstruct_flags.settings_from_flags()
    division = devices.Division(reconstruct_flags.PER_CLIP.value, reconstruct_flags.FSDP.value)
    outcomes = reconstruct_many.reconstruct_many(
        patterns, output, settings, reconstruct_flags.DEVICES.value, division
    )
    print(f"\n{clips_report.table(outcomes)}\nWritten to {output}: index.html, clips.json")
    return FAILED if any(found["status"] == "failed" for found in outcomes.values()) else 0


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
