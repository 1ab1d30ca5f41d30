"""The main job: a video in; depth, cameras, motion masks and a point cloud out.

    python -m experiments.reconstruct --video=my.mp4 --output=outputs/my

Works without weights (optical flow and geometry), better with a depth prior (--prior=files:DIR)
and with official weights (--weights=DIR, see docs/weights.md). docs/outputs.md lists what it
writes. Interrupted runs continue with --resume.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging

from align3r_jax import config as config_lib
from align3r_jax import plan, stages
from align3r_jax.errors import UserError
from align3r_jax.io import user_folder
from align3r_jax.structs import Frames
from experiments import cli

_NETWORK_SIZE, _FLOW_SIZE = 512, 320

VIDEO = flags.DEFINE_string(
    "video", None, "Video file, folder of images, or glob ('frames/*.png').", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write, made new.", required=True)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output.")
RESUME = flags.DEFINE_bool("resume", False, "Continue an interrupted run of the same settings.")
START = flags.DEFINE_integer("start", 0, "First frame, counted from 0.", lower_bound=0)
END = flags.DEFINE_integer("end", None, "Frame to stop before; default: the end.", lower_bound=1)
STRIDE = flags.DEFINE_integer("stride", 1, "Take every n-th frame.", lower_bound=1)
FPS = flags.DEFINE_float("fps", None, "Take only so many frames per second.", lower_bound=0.01)
MAX_FRAMES = flags.DEFINE_integer(
    "max_frames", 0, "At most this many frames, from the start; 0: all.", lower_bound=0
)
SIZE = flags.DEFINE_integer(
    "size", 0,
    f"Working size: long side in pixels, or 224 for the short-side rule of the 224 networks. "
    f"0: the network's own, {_FLOW_SIZE} without weights.", lower_bound=0,
)  # fmt: skip
CROP = flags.DEFINE_bool("crop", True, "Centre crop to multiples of 16; --nocrop resizes instead.")
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "Pairwise network: converted folder, official .pth/.safetensors file, "
    "align3r_small, or the work folder of a training. Default: no network, the flow predictor.",
)
PREDICTOR = flags.DEFINE_enum("predictor", "auto", ["auto", "network", "flow"], "Pair predictor.")
PRIOR = flags.DEFINE_string(
    "prior", "auto", "Depth prior: auto, small, plane, none, files:DIR, depth_pro, "
    "depth_anything_v2_{small,base,large} or depth_anything_v2_metric_{indoor,outdoor}_{...}.",
)  # fmt: skip
PRIOR_WEIGHTS = flags.DEFINE_string(
    "prior_weights", None, "Their file or folder; default: looked for by name (docs/weights.md)."
)
REFINE = flags.DEFINE_bool("refine_prior", True, "Let the shipped network clean files:DIR priors.")
FLOW = flags.DEFINE_string("flow", "dis", "Optical flow: dis, raft, sea_raft, none or files:DIR.")
FLOW_WEIGHTS = flags.DEFINE_string(
    "flow_weights", None, "File or folder of raft or sea_raft; default: looked for by name."
)
FLOW_ITERATIONS = flags.DEFINE_integer(
    "flow_iterations", 20, "Updates of raft and sea_raft; 4 is SEA-RAFT's published fast setting.",
    lower_bound=1,
)  # fmt: skip
FLOW_QUALITY = flags.DEFINE_enum("flow_quality", "medium", ["medium", "high"], "DIS setting.")
GRAPH = flags.DEFINE_string("graph", "swinstride-5-noncyclic", "Pair graph of a flat alignment.")
MODE = flags.DEFINE_enum(
    "mode", "auto", ["auto", "flat", "hierarchical"], "auto: hierarchical for long videos."
)
CLIP_SIZE = flags.DEFINE_integer(
    "clip_size", 10, "Frames of the longest clip (hierarchical).", lower_bound=2
)
SOLVER = flags.DEFINE_enum(
    "solver", "auto", ["auto", "adam", "gauss_newton"],
    "Of the alignment: adam (first order, all pixels) or gauss_newton (second order, a lattice of "
    "pixels). auto: gauss_newton for all frames at once; adam for clips of long videos and "
    "wherever --iterations, --lr, --lr_min or --schedule is set.",
)  # fmt: skip
STEPS = flags.DEFINE_integer(
    "steps", config_lib.AlignmentConfig.gauss_newton_steps, "Steps of gauss_newton, at most.",
    lower_bound=1,
)  # fmt: skip
ITERATIONS = flags.DEFINE_integer("iterations", 300, "Iterations of adam.", lower_bound=1)
LR = flags.DEFINE_float("lr", 0.01, "Learning rate of adam.", lower_bound=0.0)
LR_MIN = flags.DEFINE_float("lr_min", 1e-3, "Learning rate of adam at the end.", lower_bound=0.0)
SCHEDULE = flags.DEFINE_string(
    "schedule", "linear", "Of the learning rate: linear, cosine or cycleK (K linear ramps)."
)
SHARED_FOCAL = flags.DEFINE_bool("shared_focal", True, "One focal for the whole video.")
CAMERAS = flags.DEFINE_string(
    "cameras", None, "Known cameras of all frames or of some: COLMAP folder, transforms.json, TUM "
    "trajectory, intrinsics, plain JSON, a result of ours (docs/alignment.md). Default: none.",
)  # fmt: skip
CAMERA_USE = flags.DEFINE_enum(
    "camera_use", "all", ["all", "intrinsics", "poses"], "What of the known cameras is used."
)
CAMERA_MODE = flags.DEFINE_enum(
    "camera_mode", "fixed", ["fixed", "soft"], "Hold known cameras, or only draw to them."
)
CAMERA_WEIGHT = flags.DEFINE_float(
    "camera_weight", 0.01, "Soft cameras: weight of the term.", lower_bound=0.0
)
CAMERA_ROTATION = flags.DEFINE_float(
    "camera_rotation_std", 1.0, "Soft cameras: standard deviation in degrees.", lower_bound=1e-6
)
CAMERA_TRANSLATION = flags.DEFINE_float(
    "camera_translation_std", 0.05, "Soft cameras: standard deviation of positions, in the unit of "
    "--camera_translation_unit.", lower_bound=1e-9,
)  # fmt: skip
CAMERA_UNIT = flags.DEFINE_enum(
    "camera_translation_unit", "relative", ["relative", "scene"],
    "Of that deviation: shares of the spread of the positions, or the unit of the poses.",
)  # fmt: skip
CAMERA_FOCAL = flags.DEFINE_float(
    "camera_focal_std", 0.02, "Soft cameras: standard deviation, a share of the focal.",
    lower_bound=1e-6,
)  # fmt: skip
MASKS = flags.DEFINE_string(
    "masks", None, "Folder of masks named after frames, for any of them: grey 0 static, 128 "
    "ignore, 255 dynamic, or palette 0 static, 1 dynamic, 2 ignore. Default: motion is found.",
)  # fmt: skip
PRIOR_WEIGHT = flags.DEFINE_float(
    "depth_prior_weight", 0.0, "Weight of the term that draws depth to the shape of the prior.",
    lower_bound=0.0,
)  # fmt: skip
PRIOR_SHIFT = flags.DEFINE_bool(
    "depth_prior_shift", False, "That term: fit a shift of the prior too, not only its scale."
)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Network compute type.")
PAIR_BATCH = flags.DEFINE_integer("pair_batch", 4, "Pairs decoded together.", lower_bound=1)
MAX_MEMORY = flags.DEFINE_string(
    "max_memory", "", "What the run may use, such as 8GB or 6GiB: clips and batches are planned to "
    "fit (docs/long_videos.md). Default: half of what is free.",
)  # fmt: skip
TRUTH = flags.DEFINE_string(
    "truth", None, "Truth of a procedural video (.npz); default: VIDEO's .truth.npz if there."
)
CACHE = flags.DEFINE_string(
    "cache_dir", None, "Where depth priors of networks are kept between runs, by content; "
    "default: priors/ in the user's cache folder."
)  # fmt: skip


def config_from_flags() -> config_lib.ReconstructConfig:
    """Returns the settings that the flags name."""
    return config_lib.ReconstructConfig(
        predictor=PREDICTOR.value,
        prior=PRIOR.value,
        prior_weights=PRIOR_WEIGHTS.value,
        refine_prior=REFINE.value,
        pairs=config_lib.PairConfig(graph=GRAPH.value, mode=MODE.value, clip_size=CLIP_SIZE.value),
        flow=config_lib.FlowConfig(
            source=FLOW.value,
            quality=FLOW_QUALITY.value,
            weights=FLOW_WEIGHTS.value,
            iterations=FLOW_ITERATIONS.value,
        ),
        alignment=config_lib.AlignmentConfig(
            solver=_solver(),
            gauss_newton_steps=STEPS.value,
            iterations=ITERATIONS.value,
            lr=LR.value,
            lr_min=LR_MIN.value,
            schedule=SCHEDULE.value,
            shared_focal=SHARED_FOCAL.value,
            known_camera_weight=CAMERA_WEIGHT.value,
            depth_prior_weight=PRIOR_WEIGHT.value,
            depth_prior_shift=PRIOR_SHIFT.value,
        ),
        pair_batch=PAIR_BATCH.value,
        compute_dtype=DTYPE.value,
        max_memory=MAX_MEMORY.value,
    )


def _solver() -> str:
    """What --solver names, held to the flags that belong to a solver."""
    rates = [flag for flag in (ITERATIONS, LR, LR_MIN, SCHEDULE) if flag.value != flag.default]
    if SOLVER.value == "auto":
        return "adam" if rates else "auto"
    strange = rates if SOLVER.value == "gauss_newton" else []
    if SOLVER.value == "adam" and STEPS.value != STEPS.default:
        strange = [STEPS]
    if strange:
        raise UserError(
            f"--{strange[0].name} has no meaning for --solver={SOLVER.value}: --iterations, --lr, "
            "--lr_min and --schedule belong to adam, --steps to gauss_newton."
        )
    return SOLVER.value


def main(argv: Sequence[str]) -> None:
    del argv
    # Heavy modules after the flags are known to be good: a typo should fail at once.
    import align3r_jax
    from align3r_jax import pipeline
    from align3r_jax.io import scene_folder, video
    from align3r_jax.priors import sources
    from align3r_jax.viewer import report
    from experiments import truth as truth_lib
    from experiments import user_files

    output = Path(OUTPUT.value)
    scene_folder.check_output(output, overwrite=OVERWRITE.value)
    config = config_from_flags()
    if config.max_memory:
        plan.parse_memory(config.max_memory)
    focal = _focal_of_pictures(VIDEO.value)
    prior_model = sources.open_prior(config, **({} if focal is None else {"focal": focal}))
    flow_model = sources.open_flow(config.flow)
    model = align3r_jax.load(WEIGHTS.value) if WEIGHTS.value else None
    size = SIZE.value or (model.config.img_size if model else _FLOW_SIZE)
    prior_name, _ = sources.prior_source(config, model, prior_model, lambda sentence: None)
    frames, originals = video.read_frames(
        VIDEO.value,
        start=START.value,
        end=END.value,
        stride=STRIDE.value,
        fps=FPS.value,
        max_frames=MAX_FRAMES.value or None,
        size=size,
        crop=CROP.value,
        # Only networks look at the original pictures; those of a long video fill the memory.
        keep_originals=not re.fullmatch(r"plane|none|files:.*", prior_name, re.DOTALL),
    )
    height, width = frames.images.shape[1:3]
    logging.info("%d frames of %dx%d from %s", frames.num_frames, width, height, VIDEO.value)

    soft = user_files.Deviations(
        rotation=CAMERA_ROTATION.value,
        translation=CAMERA_TRANSLATION.value,
        relative=CAMERA_UNIT.value == "relative",
        focal=CAMERA_FOCAL.value,
    )
    user = user_files.load(
        frames,
        CAMERAS.value,
        MASKS.value,
        use=CAMERA_USE.value,
        soft=soft if CAMERA_MODE.value == "soft" else None,
    )

    partial = output.with_name(output.name + ".partial")
    if partial.exists() and not RESUME.value:
        remove_partial(partial)
    run = stages.Run(
        partial,
        fingerprint(frames, config, [model, prior_model, flow_model, user]),
        resume=RESUME.value,
        show_progress=True,
    )
    for sentence in user.notes:
        run.limit(sentence)
    scene = pipeline.reconstruct(
        frames,
        model=model,
        prior_model=prior_model,
        flow_source=flow_model,
        originals=originals,
        cameras=user.cameras,
        masks=user.masks,
        config=config,
        cache_dir=CACHE.value or str(user_folder.cache_folder("priors")),
        run=run,
    )
    truth = truth_lib.load(TRUTH.value, VIDEO.value, frames)
    summary = {
        "input": VIDEO.value,
        "frames": frames.num_frames,
        "working_size": [height, width],
        "original_size": list(frames.size.original),
        **run.facts,
        **user.facts,
        "weights": _named(model),
        "prior_weights": _named(prior_model),
        "flow_weights": _named(flow_model),
        "limits": run.limits,
        "stages": run.records,
        "losses": {
            name: float(np.asarray(values)[-1])
            for name, values in scene.trace.items()
            if name != "lr" and len(values)
        },
        "settings": config_lib.to_dict(config),
    }
    if truth is not None:
        summary["errors"] = truth_lib.errors(scene, truth)
    prior = run.products["prior"]
    scene_folder.save_scene(
        scene,
        output,
        summary,
        overwrite=OVERWRITE.value,
        prior_depth=None if prior is None else np.asarray(prior.depth),
        flow=run.products["flow"],
        true_world_from_cam=None if truth is None else truth.world_from_cam,
        finish=report.write_report,
    )
    shutil.rmtree(partial, ignore_errors=True)
    print(_closing(output, summary))


def fingerprint(
    frames: Frames, config: config_lib.ReconstructConfig, networks: Sequence[Any]
) -> str:
    """Returns a hash of all that a run's stages depend on; the user's files by size and time.

    networks: what has a `checksum` (files of the user included), or None.
    """
    digest = hashlib.sha256(np.ascontiguousarray(frames.images).tobytes())
    digest.update(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for network in networks:
        digest.update((network.checksum if network else "no weights").encode())
    for spec in (config.prior, config.flow.source):
        folder = Path(spec.removeprefix("files:"))
        if spec.startswith("files:") and folder.is_dir():
            for file in sorted(folder.iterdir()):
                found = file.stat()
                digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns}".encode())
    return digest.hexdigest()


def _focal_of_pictures(source: str) -> float | None:
    """The focal in pixels that the camera wrote into the first of a folder or glob of pictures."""
    from align3r_jax.io import exif, images

    if not Path(source).expanduser().is_dir() and not images.is_glob(source):
        return None
    return exif.read_focal(images.list_images(source)[0])


def _named(network: Any) -> dict[str, str] | None:
    return None if network is None else {"name": network.name, "checksum": network.checksum}


def remove_partial(folder: Path) -> None:
    """Removes what an interrupted run kept. UserError if the folder holds anything else."""
    foreign = [path.name for path in folder.iterdir() if path.suffix not in (".npz", ".tmp")]
    if foreign:
        raise UserError(
            f"{folder} is where an interrupted run keeps its stages, but it holds {foreign[0]!r}; "
            "move it away or choose another --output."
        )
    shutil.rmtree(folder)


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
