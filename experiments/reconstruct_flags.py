"""The flags of `experiments.reconstruct`, and the settings that they name."""

from __future__ import annotations

from absl import flags

from align3r_jax import config as config_lib
from align3r_jax import plan
from align3r_jax.errors import UserError
from experiments import reconstruct_video, user_files

VIDEO = flags.DEFINE_string(
    "video",
    None,
    "Video file, folder of images, or glob ('frames/*.png'). Needed unless --videos is given. With "
    "--mode=feedforward also camera:N, or - for YUV4MPEG2 or JPEG on standard input.",
)
VIDEOS = flags.DEFINE_string(
    "videos", None, "Many clips instead: glob of video files and folders of images ('clips/*'), or "
    "several with commas. Each gets a folder in --output; the same command in other processes, on "
    "any machine that sees the folder, shares the work, and continues it (docs/pods.md).",
)  # fmt: skip
OUTPUT = flags.DEFINE_string("output", None, "Folder to write, made new.", required=True)
OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace an existing output; of --videos those of other settings."
)
DEVICES = flags.DEFINE_string(
    "devices", "all", "With --videos: how many devices of this process take clips; or all."
)
PER_CLIP = flags.DEFINE_integer(
    "devices_per_clip", 0, "Devices that divide frames and pairs of one clip in the pairwise "
    "network; 0: as many as hold its parameters, which is 1 if they fit.", lower_bound=0,
)  # fmt: skip
FSDP = flags.DEFINE_integer(
    "fsdp", 0, "Devices that each hold a share of the pairwise network's parameters; 0: no more "
    "than it takes for them to fit.", lower_bound=0,
)  # fmt: skip
flags.register_multi_flags_validator(
    ["video", "videos"],
    lambda given: (given["video"] is None) != (given["videos"] is None),
    "--video=... must be given or, for many clips, --videos=..., not both.",
)
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
    f"0: the network's own, {reconstruct_video.FLOW_SIZE} without weights.", lower_bound=0,
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
    "mode", "auto", ["auto", "flat", "hierarchical", "feedforward"],
    "auto: hierarchical for long videos. feedforward: real time, every frame with an anchor frame, "
    "no alignment (docs/real_time.md).",
)  # fmt: skip
ANCHOR = flags.DEFINE_string(
    "anchor", "adaptive", "With --mode=feedforward: adaptive, first, or a number of frames after "
    "which the anchor is replaced.",
)  # fmt: skip
MOTION_MASKS = flags.DEFINE_bool(
    "motion_masks", True, "With --mode=feedforward: find what moves; --nomotion_masks is faster."
)
KEEP_LAST = flags.DEFINE_integer(
    "keep_last", 0, "With --mode=feedforward: frames that stay in the output, older ones are "
    "removed while it runs; 0: all.", lower_bound=0,
)  # fmt: skip
DROP = flags.DEFINE_bool(
    "drop", True, "With --video=camera:N: leave out frames that come while one is being worked on."
)
CLIP_SIZE = flags.DEFINE_integer(
    "clip_size", 10, "Frames of the longest clip (hierarchical).", lower_bound=2
)
SOLVER = flags.DEFINE_enum(
    "solver", "auto", ["auto", "adam", "gauss_newton"],
    "Of the alignment: adam (first order, all pixels) or gauss_newton (second order, a lattice of "
    "pixels). auto: gauss_newton; adam where --iterations, --lr, --lr_min or --schedule is set.",
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
OUTLINE_MASKS = flags.DEFINE_bool(
    "outline_masks", True, "Draw the motion masks that are found to the edges of their images."
)
PRIOR_WEIGHT = flags.DEFINE_float(
    "depth_prior_weight", 0.0, "Weight of the term that draws depth to the shape of the prior.",
    lower_bound=0.0,
)  # fmt: skip
PRIOR_SHIFT = flags.DEFINE_bool(
    "depth_prior_shift", False, "That term: fit a shift of the prior too, not only its scale."
)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Network compute type.")
PAIR_BATCH = flags.DEFINE_integer(
    "pair_batch", 0, "Frames encoded, and pairs decoded, together; 0: 1 on CPUs, 4 elsewhere.",
    lower_bound=0,
)  # fmt: skip
MAX_MEMORY = flags.DEFINE_string(
    "max_memory", "", "What the run may use, such as 8GB or 6GiB: clips and batches are planned to "
    "fit (docs/long_videos.md). Default: half of what is free.",
)  # fmt: skip
FEATURE_MEMORY = flags.DEFINE_string(
    "feature_memory", "", "What a network's features may take on the device, such as 2GB; those of "
    "longer videos wait on the host. Default: half of what is free there.",
)  # fmt: skip
TRUTH = flags.DEFINE_string(
    "truth", None, "Truth of a procedural video (.npz); default: VIDEO's .truth.npz if there."
)
CACHE = flags.DEFINE_string(
    "cache_dir", None, "Where depth priors of networks are kept between runs, by content; "
    "default: priors/ in the user's cache folder."
)  # fmt: skip


def settings_from_flags() -> reconstruct_video.Settings:
    """Returns all that the flags say of how a video is to be worked on."""
    soft = user_files.Deviations(
        rotation=CAMERA_ROTATION.value,
        translation=CAMERA_TRANSLATION.value,
        relative=CAMERA_UNIT.value == "relative",
        focal=CAMERA_FOCAL.value,
    )
    return reconstruct_video.Settings(
        config=config_from_flags(),
        weights=WEIGHTS.value,
        reading=reconstruct_video.Reading(
            start=START.value,
            end=END.value,
            stride=STRIDE.value,
            fps=FPS.value,
            max_frames=MAX_FRAMES.value or None,
            size=SIZE.value,
            crop=CROP.value,
        ),
        cameras=CAMERAS.value,
        masks=MASKS.value,
        camera_use=CAMERA_USE.value,
        soft=soft if CAMERA_MODE.value == "soft" else None,
        truth=TRUTH.value,
        cache_dir=CACHE.value,
        overwrite=OVERWRITE.value,
        resume=RESUME.value,
    )


# What only an alignment heeds, and what only the real-time mode does.
_ALIGNED = (
    "videos", "resume", "graph", "clip_size", "solver", "steps", "iterations", "lr", "lr_min",
    "schedule", "shared_focal", "cameras", "camera_use", "camera_mode", "masks",
    "depth_prior_weight", "depth_prior_shift", "pair_batch", "max_memory", "refine_prior",
    "cache_dir",
)  # fmt: skip
_REAL_TIME = ("anchor", "motion_masks", "keep_last", "drop")


def check_mode() -> None:
    """Raises UserError if a flag was set that the mode does not heed."""
    real_time = MODE.value == "feedforward"
    for name in _ALIGNED if real_time else _REAL_TIME:
        if flags.FLAGS[name].present:
            raise UserError(
                f"--{name} has no meaning for --mode=feedforward, which aligns nothing; drop it or "
                "use another mode."
                if real_time
                else f"--{name} belongs to the real-time mode; add --mode=feedforward or drop it."
            )
    live = VIDEO.value is not None and (VIDEO.value == "-" or VIDEO.value.startswith("camera:"))
    if live and not real_time:
        raise UserError(
            f"--video={VIDEO.value} is a stream; add --mode=feedforward, the mode that works on "
            "frames as they come."
        )


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
            outline_masks=OUTLINE_MASKS.value,
            known_camera_weight=CAMERA_WEIGHT.value,
            depth_prior_weight=PRIOR_WEIGHT.value,
            depth_prior_shift=PRIOR_SHIFT.value,
        ),
        feedforward=config_lib.FeedForwardConfig(
            anchor=ANCHOR.value, motion_masks=MOTION_MASKS.value
        ),
        pair_batch=PAIR_BATCH.value,
        compute_dtype=DTYPE.value,
        max_memory=MAX_MEMORY.value,
        feature_memory=plan.parse_memory(FEATURE_MEMORY.value) if FEATURE_MEMORY.value else None,
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
