"""Who evaluates how: every choice that moves a number, as data.

    protocol = protocols.get("align3r_paper", "video_depth", "kitti")

The same weights score 0.26 to 0.40 Abs Rel on Sintel under protocols of different papers. A
protocol here is a frozen dataclass; `get` returns it with the exceptions for one data set applied,
and `config.to_dict` prints it, as every result file does. docs/evaluation.md is the table to read.

| name | what it reproduces |
|---|---|
| align3r_paper | Align3R (Lu et al., CVPR 2025), tables 2 and 3, by its first released scripts |
| align3r_code | the scripts of Align3R as of March 2025, without their PromptDA refinement |
| monst3r | MonST3R (Zhang et al., ICLR 2025), tables 2 to 4 |
| depthcrafter | frames and fit of DepthCrafter (Hu et al., CVPR 2025) around our own defaults |
| ours | our defaults: exact fits, frames associated by time stamp |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from align3r_jax.config import (
    AlignmentConfig,
    FlowConfig,
    PairConfig,
    ReconstructConfig,
)
from align3r_jax.errors import UserError
from align3r_jax.evaluation.depth import DepthProtocol

TASKS = ("video_depth", "single_depth", "camera_pose", "motion")
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Reading:
    """Which sequences and frames of a data set are read; None: what its reader does by default.

    association: "stamps" (nearest in time), "position" (k-th file with k-th file) or
    "reference_rows" (k-th picture with k-th row of the ground truth; no association at all).
    """

    sequences: str | tuple[str, ...] = "default"
    start: int | None = None
    stride: int | None = None
    max_frames: int | None = None  # 0: all
    render_pass: str = "final"
    association: str = "stamps"


@dataclasses.dataclass(frozen=True)
class Running:
    """How a method runs. size: long side of the working size (0: the network's own, or 320).

    crop: to multiples of 16, instead of a second resize. reconstruct: graph, clip length,
    iterations, loss weights, confidences, prior, flow.
    """

    size: int = 0
    crop: bool = False
    reconstruct: ReconstructConfig = ReconstructConfig()


@dataclasses.dataclass(frozen=True)
class VideoDepthProtocol:
    """Depth of a video: one fit for all frames of a sequence, metrics pooled over its pixels.

    depth: the fit and the pixels that count; with `depth.disparity` predicted depth is inverted
    first. interpolation: of predictions to the size of the truth. average: over sequences,
    weighted by "pixels" or plain ("sequences").
    exceptions: where -> fields (nested like the fields) that differ there; where is a data set,
    "DATASET+PRIOR" (a data set with priors of that family) or "DATASET/SEQUENCE".
    """

    source: str
    reading: Reading = Reading()
    running: Running = Running()
    depth: DepthProtocol = DepthProtocol()
    interpolation: Literal["linear", "cubic"] = "linear"
    average: Literal["pixels", "sequences"] = "pixels"
    exceptions: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SingleDepthProtocol(VideoDepthProtocol):
    """Depth of single frames, each paired with itself and fitted by itself."""


@dataclasses.dataclass(frozen=True)
class PoseProtocol:
    """Camera paths: Sim(3) alignment of positions, RPE between neighbouring frames (evo).

    The number of a set is the plain mean over its sequences; a path that fixes no similarity
    (standing, on a line) is named and does not count.
    """

    source: str
    reading: Reading = Reading()
    running: Running = Running()
    exceptions: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MotionProtocol:
    """Masks of what moves by itself, brought to the size of the truth by nearest neighbour.

    The numbers of a set are plain means over sequences of J, the mean IoU over frames, of F, the
    mean over frames of how well the outlines agree, and of J&F, their mean (Perazzi et al., CVPR
    2016).
    """

    source: str
    reading: Reading = Reading()
    running: Running = Running()
    exceptions: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


Protocol = VideoDepthProtocol | SingleDepthProtocol | PoseProtocol | MotionProtocol

# Align3R's depth evaluation: no flow, no smoothness, clips that do not share a scale.
_DEPTH_ALIGNMENT = AlignmentConfig(
    lr=0.05, lr_min=1e-6, schedule="cosine", shared_focal=False, smoothness_weight=0.0,
    flow_weight=0.0, stale_focal=True, join_rescale=False, joint_iterations=0,
    motion_min_error_px=0.0, motion_mask_updates=0, outline_masks=False, clean=False,
)  # fmt: skip
# The published pose settings of both papers.
_POSE_ALIGNMENT = AlignmentConfig(
    flow_gate=20.0, flow_use_weight=False, stale_focal=True, motion_min_error_px=0.0,
    motion_mask_updates=0, outline_masks=False, join_rescale=False, joint_iterations=0,
    clean_tolerance=1e-3, clean_views=0,
)  # fmt: skip
_SEA_RAFT = FlowConfig(source="sea_raft", consistency="reference", consistency_px=3.0)
_FLAT = PairConfig(graph="swinstride-5-noncyclic", mode="flat")


def _hierarchical(clip: int) -> PairConfig:
    return PairConfig(
        mode="hierarchical", symmetrize=False, clip_size=clip, clip_symmetric=False,
        max_complete_key_frames=0,
    )  # fmt: skip


def _running(
    pairs: PairConfig, alignment: AlignmentConfig, flow: FlowConfig, prior: str, **changes: Any
) -> Running:
    settings = ReconstructConfig(
        predictor="network", prior=prior, refine_prior=False, pairs=pairs, flow=flow,
        alignment=alignment, **changes,
    )  # fmt: skip
    return Running(size=512, reconstruct=settings)


_NO_FLOW = FlowConfig(source="none")
_ALIGN3R_DEPTH = _running(
    _hierarchical(20), _DEPTH_ALIGNMENT, _NO_FLOW, "depth_pro", equal_confidence=True
)
_ALIGN3R_CODE_DEPTH = _running(
    _hierarchical(50), _DEPTH_ALIGNMENT, _NO_FLOW, "depth_pro", equal_confidence=True
)
_ALIGN3R_POSE = _running(
    _FLAT, dataclasses.replace(_POSE_ALIGNMENT, flow_gate=40.0), _SEA_RAFT, "depth_pro"
)
_MONST3R = _running(_FLAT, _POSE_ALIGNMENT, _SEA_RAFT, "none")
_SWIN = {"running": {"reconstruct": {"pairs": {"graph": "swin-5-noncyclic"}}}}
# Align3R has no depth evaluation of its own for sets that MonST3R introduced; sizes of the sets.
_ALIGN3R_FRAMES: dict[str, dict[str, Any]] = {
    "bonn": {"reading": {"start": 30, "max_frames": 110}},
    "tum": {"reading": {"start": 30, "stride": 1, "max_frames": 50}},
}
_ROWS = {"start": 30, "stride": 1, "max_frames": 30, "association": "reference_rows"}
_ALIGN3R_POSE_SETS: dict[str, dict[str, Any]] = {
    "bonn": {"reading": _ROWS, **_SWIN},
    "tum": {"reading": _ROWS, **_SWIN},
    "scannet": _SWIN,
    "sintel+depth_anything": _SWIN,
    "sintel/temple_3": {"running": {"reconstruct": {"alignment": {"flow_gate": 10.0}}}},
}
_SINGLE = DepthProtocol(fit="median", min_depth=0.0, max_depth=None, clip=(None, None))
_MONST3R_KITTI = {"max_depth": None, "clip": (None, None)}
# MonST3R: weights of flow and translation for driving, from its README.
_KITTI_ALIGNMENT = {"flow_weight": 0.0, "smoothness_translation_weight": 1e-3}
_ALIGN3R_SOURCE = "Align3R, CVPR 2025, section 4 and supplement; first released scripts"
_CODE_SOURCE = "Align3R's scripts of March 2025; their PromptDA refinement is not part of it"
_MONST3R_SOURCE = "MonST3R, ICLR 2025, section 4; its evaluation scripts and README"
_CRAFTER_SOURCE = (
    "DepthCrafter, CVPR 2025, section 4 (frames, fit in disparity); depth limits of single sets "
    "are the customary ones: KITTI 80 m, indoors 10 m"
)
_OURS_SOURCE = "this project"

PROTOCOLS: dict[str, dict[str, Protocol]] = {
    "align3r_paper": {
        "video_depth": VideoDepthProtocol(
            _ALIGN3R_SOURCE,
            Reading(max_frames=110, association="position"),
            _ALIGN3R_DEPTH,
            exceptions=_ALIGN3R_FRAMES,
        ),
        "single_depth": SingleDepthProtocol(
            "as MonST3R, whose single-frame protocol Align3R does not repeat",
            Reading(association="position"),
            _ALIGN3R_DEPTH,
            _SINGLE,
            exceptions=_ALIGN3R_FRAMES,
        ),
        "camera_pose": PoseProtocol(
            _ALIGN3R_SOURCE, Reading(), _ALIGN3R_POSE, exceptions=_ALIGN3R_POSE_SETS
        ),
        "motion": MotionProtocol("pose settings; the paper scores no masks", Reading(),
                                 _ALIGN3R_POSE),  # fmt: skip
    },
    "align3r_code": {
        "video_depth": VideoDepthProtocol(
            _CODE_SOURCE,
            Reading(max_frames=110, association="position", render_pass="clean"),
            _ALIGN3R_CODE_DEPTH,
            exceptions=_ALIGN3R_FRAMES,
        ),
        "single_depth": SingleDepthProtocol(
            "as MonST3R, whose single-frame protocol Align3R does not repeat",
            Reading(association="position", render_pass="clean"),
            _ALIGN3R_CODE_DEPTH,
            _SINGLE,
            exceptions=_ALIGN3R_FRAMES,
        ),
        "camera_pose": PoseProtocol(
            _CODE_SOURCE,
            Reading(render_pass="clean"),
            _ALIGN3R_POSE,
            exceptions=_ALIGN3R_POSE_SETS | {"sintel": {"reading": {"sequences": "all"}}},
        ),
        "motion": MotionProtocol("pose settings; the script scores no masks",
                                 Reading(render_pass="clean"), _ALIGN3R_POSE),  # fmt: skip
    },
    "monst3r": {
        "video_depth": VideoDepthProtocol(
            _MONST3R_SOURCE,
            Reading(association="position"),
            _MONST3R,
            DepthProtocol(fit="lad2", min_depth=0.0, max_depth=70.0, clip=(None, None)),
            interpolation="cubic",
            exceptions={
                "sintel": {"depth": {"clip": (None, 70.0)}},
                "bonn": {"reading": {"start": 30, "max_frames": 110}},
                "kitti": {
                    "reading": {"max_frames": 110},
                    "depth": _MONST3R_KITTI,
                    "running": {"reconstruct": {"alignment": _KITTI_ALIGNMENT}},
                },
            },
        ),
        "single_depth": SingleDepthProtocol(
            _MONST3R_SOURCE,
            Reading(association="position"),
            _MONST3R,
            _SINGLE,
            interpolation="cubic",
            exceptions={
                "sintel": {"depth": {"max_depth": 70.0, "clip": (None, 70.0)}},
                "bonn": {
                    "reading": {"start": 30, "max_frames": 110},
                    "depth": {"max_depth": 70.0},
                },
            },
        ),
        "camera_pose": PoseProtocol(
            _MONST3R_SOURCE,
            Reading(),
            _MONST3R,
            exceptions={
                "tum": {"reading": {"start": 0, "stride": 3, "max_frames": 90}},
                "scannet": {"reading": {"start": 0, "stride": 3, "max_frames": 90}},
            },
        ),
        "motion": MotionProtocol("pose settings; the paper scores no masks", Reading(), _MONST3R),
    },
    "depthcrafter": {
        "video_depth": VideoDepthProtocol(
            _CRAFTER_SOURCE,
            Reading(max_frames=110, association="position"),
            depth=DepthProtocol(
                fit="lstsq", min_depth=1e-3, max_depth=70.0, clip=(1e-3, 70.0), disparity=True
            ),
            average="sequences",
            exceptions={
                "sintel": {"reading": {"max_frames": 50}},
                "bonn": {
                    "reading": {"start": 30, "max_frames": 110},
                    "depth": {"max_depth": 10.0, "clip": (1e-3, 10.0)},
                },
                "scannet": {
                    "reading": {"start": 0, "stride": 3, "max_frames": 90},
                    "depth": {"max_depth": 10.0, "clip": (1e-3, 10.0)},
                },
                "kitti": {"depth": {"max_depth": 80.0, "clip": (1e-3, 80.0)}},
            },
        ),
        "single_depth": SingleDepthProtocol(
            _CRAFTER_SOURCE,
            Reading(),
            depth=DepthProtocol(
                fit="lstsq", min_depth=1e-3, max_depth=10.0, clip=(1e-3, 10.0), disparity=True
            ),
            average="sequences",
        ),
    },
    "ours": {
        "video_depth": VideoDepthProtocol(_OURS_SOURCE),
        "single_depth": SingleDepthProtocol(_OURS_SOURCE, depth=DepthProtocol(fit="lad_scale")),
        "camera_pose": PoseProtocol(_OURS_SOURCE),
        "motion": MotionProtocol(_OURS_SOURCE),
    },
}  # fmt: skip


def get(name: str, task: str, dataset: str, prior: str | None = None) -> Any:
    """Returns the protocol with the exceptions of the data set applied.

    prior: the depth prior if it is not the protocol's ("depth_anything_v2_large",
    "stored:depthanything"); exceptions for its family apply too. What is left in `exceptions` is
    sequence -> changes, for `of_sequence`.

    Raises UserError if the name or the task is unknown, or the protocol says nothing of the task.
    """
    if name not in PROTOCOLS:
        raise UserError(f"Unknown protocol '{name}'; known are {', '.join(PROTOCOLS)}.")
    if task not in TASKS:
        raise UserError(f"Unknown task '{task}'; known are {', '.join(TASKS)}.")
    if task not in PROTOCOLS[name]:
        raise UserError(
            f"The protocol '{name}' says nothing of {task}; it covers {', '.join(PROTOCOLS[name])}."
        )
    protocol = PROTOCOLS[name][task]
    exceptions = protocol.exceptions
    sequences = {
        key.removeprefix(f"{dataset}/"): changes
        for key, changes in exceptions.items()
        if key.startswith(f"{dataset}/")
    }
    protocol = dataclasses.replace(protocol, exceptions=sequences)
    protocol = replaced(protocol, exceptions.get(dataset, {}))
    for key, changes in exceptions.items():
        there, _, family = key.partition("+")
        if family and there == dataset and _plain(prior or "").startswith(_plain(family)):
            protocol = replaced(protocol, changes)
    return protocol


def of_sequence(protocol: _T, name: str) -> _T:
    """Returns what `get` gave, as it is for one sequence; no exceptions are left."""
    changes = protocol.exceptions.get(name, {})  # type: ignore[attr-defined]
    return replaced(dataclasses.replace(protocol, exceptions={}), changes)  # type: ignore[type-var]


def _plain(prior: str) -> str:
    """The name of a prior as data sets spell it for stored files: depthanything."""
    return prior.removeprefix("stored:").replace("_", "")


def replaced(value: _T, changes: Mapping[str, Any]) -> _T:
    """Returns a frozen dataclass with some fields changed; dictionaries go into nested ones."""
    built = {
        name: replaced(getattr(value, name), change) if isinstance(change, Mapping) else change
        for name, change in changes.items()
    }
    return dataclasses.replace(value, **built)  # type: ignore[type-var]
