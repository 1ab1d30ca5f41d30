"""Warnings in plain words: what a reader of a result should know before trusting it.

Pure functions of the result; each threshold is named and says what it stands on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from align3r_jax.findings import measures as measures_lib
from align3r_jax.structs import Scene

MIN_PARALLAX_PX = (
    2.0  # below, depth from parallax is worth no more than flow's errors (some 0.1 px)
)
MIN_OVERLAP = 0.5  # of two neighbours; below, most of what one shows was never compared
MAX_PRIOR_ERROR = 0.25  # Abs Rel; good monocular depth is at 0.05 to 0.1
# Priors that know nothing, or little: that the scene disagrees with them says nothing of it.
WEAK_PRIORS = frozenset({"plane", "small"})
MAX_FOCAL_SPREAD = 0.1  # middle 90 % of the frames' focals, a share of their median
MAX_MOVING = 0.5  # of a frame's pixels: cameras are found from the rest
LOW_CONFIDENCE = 0.5  # confidence above 1, a share of what it usually is in the video
MANY_UNSURE = 0.5  # share of pixels below `measures.UNSURE`
CUT_CHANGE = 0.12  # mean change of blurred colours, of 1 ...
CUT_RATIO = 4.0  # ... and a multiple of the usual change, which is large in fast pans
MAX_RANGES = 5  # of frames named in a sentence


@dataclasses.dataclass(frozen=True)
class Finding:
    """title: what is the case. text: where, how much, and what to do. frames: which, ascending."""

    title: str
    text: str
    frames: tuple[int, ...] = ()

    @property
    def sentence(self) -> str:
        return f"{self.title}: {self.text}"


def find(
    scene: Scene, prior_depth: np.ndarray | None = None, said: Iterable[str] = ()
) -> list[Finding]:
    """Returns the warnings about a result, the gravest first; none about a good one.

    prior_depth: (T, Hd, Wd) the depth prior if it is none of `WEAK_PRIORS`.
    said: sentences that readers get anyway, which are not said again.
    """
    return judge(measures_lib.measure(scene, prior_depth), said)


def judge(measured: measures_lib.Measures, said: Iterable[str] = ()) -> list[Finding]:
    """Returns the warnings that the measures of a result give rise to; see `find`."""
    said = tuple(said)
    checks = (_cut, _still_camera, _overlap, _moving, _confidence, _prior, _focal)
    found = [warning for check in checks for warning in check(measured)]
    if any(sentence.startswith("Low parallax") for sentence in said):  # of the flow predictor
        found = [warning for warning in found if warning.title != _STILL]
    return [w for w in found if not any(sentence.startswith(w.title) for sentence in said)]


def frame_ranges(frames: Sequence[int] | np.ndarray) -> str:
    """Returns frame numbers as people write them: "frame 4", "frames 12–19, 25 and 31"."""
    parts = np.split(np.asarray(frames, int), np.flatnonzero(np.diff(frames) > 1) + 1)
    names = [f"{part[0]}" if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts]
    rest = len(names) - MAX_RANGES
    if rest > 1:
        names = [*names[:MAX_RANGES], f"{rest} more ranges"]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"frame{'' if len(frames) == 1 else 's'} {listed}"


def _cut(measured: measures_lib.Measures) -> list[Finding]:
    change = measured.change
    if len(change) < 2:
        return []
    usual = np.median(change)
    after = np.flatnonzero((change > CUT_CHANGE) & (change > CUT_RATIO * usual)) + 1
    if not len(after):
        return []
    return [Finding(
        "There seems to be a hard cut",
        f"the picture changes all at once before {frame_ranges(after)}. The scenes before and "
        "after have nothing in common, and their places relative to each other are invented; "
        "reconstruct them apart, with --start and --end.",
        tuple(after.tolist()),
    )]  # fmt: skip


_STILL = "The camera hardly moves from its place"


def _still_camera(measured: measures_lib.Measures) -> list[Finding]:
    if not measured.parallax < MIN_PARALLAX_PX:
        return []
    return [Finding(
        _STILL,
        f"along its whole path things at typical depth shift by {measured.parallax:.1f} pixels. "
        "The scale of its translation is not determined, and depth is the prior's or a guess, not "
        "measured.",
    )]  # fmt: skip


def _overlap(measured: measures_lib.Measures) -> list[Finding]:
    first = np.flatnonzero(measured.overlap < MIN_OVERLAP)
    if not len(first):
        return []
    worst = int(first[np.argmin(measured.overlap[first])])
    where = f"frames {worst} and {worst + 1}"
    others = "" if len(first) == 1 else f" ({len(first)} such pairs of neighbours)"
    return [Finding(
        "Neighbouring frames share little of the picture",
        f"of {where} only {_percent(measured.overlap[worst])} is seen by both{others}. Cameras and "
        "depth hold together weakly there; more frames per second (--fps, --stride) help.",
        tuple((first + 1).tolist()),
    )]  # fmt: skip


def _moving(measured: measures_lib.Measures) -> list[Finding]:
    frames = np.flatnonzero(measured.moving > MAX_MOVING)
    if not len(frames):
        return []
    return [Finding(
        "Much of the picture moves by itself",
        f"up to {_percent(measured.moving[frames].max())} in {frame_ranges(frames)}. The cameras "
        "stand on the rest, and if the mask is wrong, camera motion was taken for motion of "
        "things; --masks gives better ones.",
        tuple(frames.tolist()),
    )]  # fmt: skip


def _confidence(measured: measures_lib.Measures) -> list[Finding]:
    usual = float(np.median(measured.confidence))
    threshold = low_confidence(measured)
    unsure = measured.unsure > MANY_UNSURE
    if unsure.mean() > 0.5:
        return [Finding(
            "Confidence is low nearly everywhere",
            f"in {frame_ranges(np.flatnonzero(unsure))} more than half of the pixels are below "
            f"{measures_lib.UNSURE:g} and become no points.",
            tuple(np.flatnonzero(unsure).tolist()),
        )]  # fmt: skip
    frames = np.flatnonzero(unsure | (measured.confidence < threshold))
    if not len(frames):
        return []
    return [Finding(
        "Confidence is low in part of the video",
        f"in {frame_ranges(frames)} its median is below {threshold:.3g} or most pixels become no "
        f"points; usual here is {usual:.3g}. Trust depth and cameras less there.",
        tuple(frames.tolist()),
    )]  # fmt: skip


def low_confidence(measured: measures_lib.Measures) -> float:
    """Returns the median confidence of a frame below which it is called low in this video."""
    return 1 + LOW_CONFIDENCE * max(float(np.median(measured.confidence)) - 1, 0.0)


def _prior(measured: measures_lib.Measures) -> list[Finding]:
    if measured.prior_error is None:
        return []
    frames = np.flatnonzero(measured.prior_error > MAX_PRIOR_ERROR)
    if not len(frames):
        return []
    return [Finding(
        "Depth prior and alignment disagree",
        f"in {frame_ranges(frames)}, by up to {_percent(measured.prior_error[frames].max())} of "
        "the depth once the scale of each frame is fitted. One of the two is wrong there: compare "
        "both panels.",
        tuple(frames.tolist()),
    )]  # fmt: skip


def _focal(measured: measures_lib.Measures) -> list[Finding]:
    low, high = np.percentile(measured.focal, [5, 95]) / np.median(measured.focal) - 1
    if not high - low > MAX_FOCAL_SPREAD:
        return []
    return [Finding(
        "The focal length is not stable",
        f"over the frames it runs from {100 * low:+.0f} % to {100 * high:+.0f} % of its median. "
        "Unless the lens zoomed, share one focal (--shared_focal) or give the intrinsics "
        "(--cameras).",
    )]  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
