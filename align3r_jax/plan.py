"""How a video is cut so that it fits into memory: decided and printed before anything is computed.

Every stage's peak is predicted from the sizes of its arrays (`predict`); the most generous of a
list of choices whose largest stage fits is taken (`make_plan`). What grows with the number of
frames cannot be chosen away: when even the smallest choice does not fit, the error says how much
is needed. `docs/long_videos.md` holds predictions beside measurements.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from align3r_jax import pairing
from align3r_jax.alignment import joint
from align3r_jax.config import NetworkConfig, ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import cost
from align3r_jax.networks.frame_features import Reuse
from align3r_jax.predictors import flow_lattice, network_programs

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SHARE = 0.5  # of the free memory, unless the user names a limit

_PROGRAMS = 700 << 20  # flat: compiled programs, the compiler, what the allocator keeps
# Hierarchical, by stage: every stage adds its own programs to those of the stages before, whatever
# the size of the frames. Measured (docs/long_videos.md).
_PROGRAMS_SO_FAR = {
    "frame features": 300 << 20,
    "key frames": 430 << 20,
    "clips": 1030 << 20,
    "joint refinement": 1420 << 20,
    "outputs": 1250 << 20,
}
_LAST_CALL = 310 << 20  # one more where the last call has fewer clips than the others
_NETWORK = 400 << 20  # those of a pairwise network
_POINT = 32  # bytes per pixel and pair: two point maps (3) and confidences (1), float32
_FIELD = 12  # bytes per pixel and flow field: two components and a weight, float32
_RUN = 200  # bytes per pixel and pair of one run: given, laid out, searched for moving things
_STACKED = 200  # the same for the clips of one call, stacked; measured (docs/long_videos.md)
_FRAME = 80  # bytes per pixel and frame of a run: depth, moments, points and their gradient
_RESULT = 9  # bytes per pixel and frame that every finished clip leaves: depth, confidence, mask
_OUTPUT = 50  # bytes per pixel and frame while the result is decoded, written and read for a report
_CLOUD = 150 << 20  # the point cloud (its size is capped) and the page
_SLOTS = 2 * len(flow_lattice.OFFSETS)
_CELL = 16 * _SLOTS  # bytes per lattice cell and frame: target (2), weight, weight of still ones
_COLUMNS = 8 * (6 * _SLOTS + 1) / 4  # the same: the normal equations, on every fourth cell
_BLOCK = 400 << 20  # temporaries of one block of the flow bundle
_MAX_CLIPS = 8
_MIN_CLIP = 4
_MIN_PIXELS = 64  # of a frame in the joint refinement
_PAIRS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the video is cut.

    mode: "flat" or "hierarchical". clip_size: longest clip; clips_per_call: clips aligned in one
    call; lattice_keys: key frames are aligned on the lattice of the joint refinement rather than at
    full size; pairs_at_once: pairs predicted together where only their lattice is kept;
    joint_pixels: pixels of a frame on that lattice; pair_batch: pairs that a network decodes
    together;
    frames_kept: frames whose network features are kept; reuse: what these hold
    (`networks.frame_features`). stages: name -> predicted peak, bytes of the whole process. limit:
    bytes that were allowed.
    """

    mode: str
    clip_size: int
    clips_per_call: int
    lattice_keys: bool
    pairs_at_once: int
    joint_pixels: int
    pair_batch: int
    frames_kept: int
    reuse: Reuse
    stages: dict[str, int]
    limit: int

    @property
    def peak(self) -> int:
        """Bytes of the largest stage."""
        return max(self.stages.values())

    def applied(self, config: ReconstructConfig) -> ReconstructConfig:
        """Returns the config with what the plan decides, the solver "auto" among it."""
        pairs = dataclasses.replace(config.pairs, clip_size=self.clip_size)
        solver = config.alignment.solver
        alignment = dataclasses.replace(
            config.alignment,
            joint_pixels=self.joint_pixels,
            solver="gauss_newton" if solver == "auto" else solver,
        )
        return dataclasses.replace(
            config,
            pairs=pairs,
            alignment=alignment,
            pair_batch=self.pair_batch,
            feature_reuse=self.reuse,
        )

    def facts(self) -> dict[str, Any]:
        """Returns the plan for `summary.json`."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """Returns the plan as lines of text."""
        cut = "all frames at once"
        if self.mode == "hierarchical":
            cut = (
                f"clips of up to {self.clip_size} frames, {self.clips_per_call} in one call, "
                f"joint refinement on {self.joint_pixels} pixels of a frame"
            )
        stages = ", ".join(f"{name} {say(size)}" for name, size in self.stages.items())
        over = "" if self.peak <= self.limit else ", more than half of what is free"
        return f"Memory plan: {cut}.\nPredicted peaks: {stages}; allowed {say(self.limit)}{over}."


def parse_memory(text: str) -> int:
    """Returns bytes of "8GB", "500 MiB", "2e9"; GB = 10^9, GiB = 2^30. Raises UserError."""
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([KMGT]I?)?B?\s*", text, re.IGNORECASE)
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if not found or number <= 0:
        raise UserError(
            f"Cannot read {text!r} as an amount of memory; write it like 8GB, 500MB or 6GiB."
        )
    unit = (found[2] or "").upper()
    return int(number * (_UNITS | _BINARY)[unit])


def say(size: float) -> str:
    """Returns bytes as text, "3.2 GB"."""
    return f"{size / 1e9:.2g} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def free_memory() -> int:
    """Returns bytes that this process may still take: of the machine, or of its container."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = Path("/proc/meminfo").read_text()
        free = int(re.search(r"MemAvailable:\s*(\d+) kB", text)[1]) * 1024  # type: ignore[index]
        group = Path("/sys/fs/cgroup")
        allowed = int((group / "memory.max").read_text())
        free = min(free, allowed - int((group / "memory.current").read_text()))
    except (OSError, TypeError, ValueError):
        pass  # no such files, or no limit ("max")
    return free


def resident_memory() -> int:
    """Returns bytes that this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 400 << 20
    return pages * os.sysconf("SC_PAGE_SIZE")


def make_plan(
    num_frames: int,
    height: int,
    width: int,
    config: ReconstructConfig,
    *,
    network: NetworkConfig | None = None,
    max_memory: int | None = None,
    allowance: int | None = None,
    resident: int | None = None,
) -> Plan:
    """Returns the most generous plan that fits.

    network: of the pairwise network, None for the flow predictor. max_memory: bytes for the whole
    process; None: what it holds now and half of what is free, or, if nothing fits into that, the
    smallest plan there is. allowance: bytes beside what it holds, for one of several runs that
    share a process. resident: what it holds now, the frames included (measured if None).
    Raises UserError, with the smallest limit that would do, if nothing fits into a given one.
    """
    resident = resident_memory() if resident is None else resident
    limit = resident + int(_SHARE * free_memory()) if max_memory is None else max_memory
    limit = limit if allowance is None else resident + allowance
    smallest: Plan | None = None
    reuses: list[Reuse] = ["tokens"] if network is None else ["head", "block", "tokens"]
    if config.feature_reuse != "auto":
        reuses = [config.feature_reuse]
    elif network is not None and config.feature_memory is not None:
        share = config.feature_memory / num_frames
        reuses = cost.reuses_within(share, network, height, width)
    for choice in _choices(num_frames, config, reuses):
        stages = predict(choice, num_frames, height, width, config, network, resident)
        choice = dataclasses.replace(choice, stages=stages, limit=limit)
        if choice.peak <= limit:
            return choice
        if smallest is None or choice.peak < smallest.peak:
            smallest = choice
    assert smallest is not None
    if max_memory is None:
        return smallest
    raise UserError(
        f"{num_frames} frames of {width}x{height} do not fit into {say(limit)}: at least "
        f"{int(np.ceil(smallest.peak / 1e8)) / 10:.1f}GB is needed. Raise --max_memory, take fewer "
        "frames (--stride, --max_frames) or smaller ones (--size)"
        + ("." if config.pairs.mode != "flat" else ", or use --mode=hierarchical.")
    )


def allowance_of(max_memory: int | None, runs: int) -> int | None:
    """Returns the bytes for each of several runs that share this process; None for a single one.

    max_memory: of the whole process; None: half of what is free.
    """
    if runs == 1:
        return None
    free = int(_SHARE * free_memory()) if max_memory is None else max_memory - resident_memory()
    return max(free, 0) // runs


def is_hierarchical(config: ReconstructConfig, num_frames: int) -> bool:
    """Whether key frames are aligned first, then clips, rather than all frames at once."""
    if config.pairs.mode == "auto":
        return num_frames > config.pairs.flat_max_frames
    return config.pairs.mode == "hierarchical" and num_frames > 4


def _choices(num_frames: int, config: ReconstructConfig, reuses: list[Reuse]) -> Iterator[Plan]:
    """Plans from the most generous to the smallest, without predictions.

    Of the most generous only, features hold more than they must: it spares a pair a tenth of its
    operations for three times the memory.
    """
    first, *others = _plainer_choices(num_frames, config)
    for reuse in reuses:
        yield dataclasses.replace(first, reuse=reuse)
    for choice in others:
        yield dataclasses.replace(choice, reuse=reuses[-1])


def _plainer_choices(num_frames: int, config: ReconstructConfig) -> Iterator[Plan]:
    base = Plan(
        mode="hierarchical",
        clip_size=pairing.clip_size(num_frames, config.pairs.clip_size),
        clips_per_call=1,
        lattice_keys=False,
        pairs_at_once=_PAIRS_AT_ONCE,
        joint_pixels=config.alignment.joint_pixels,
        pair_batch=network_programs.batch_size(config.pair_batch),
        frames_kept=num_frames,
        reuse="tokens",
        stages={},
        limit=0,
    )
    if not is_hierarchical(config, num_frames):
        yield dataclasses.replace(base, mode="flat")
        yield dataclasses.replace(base, mode="flat", pair_batch=1)
        if config.pairs.mode == "flat" or num_frames <= 4:
            return
    many = (
        _key_frames(num_frames, base.clip_size, config).num_frames
        > config.pairs.max_complete_key_frames
    )
    base = dataclasses.replace(base, lattice_keys=many and config.pairs.max_complete_key_frames > 0)
    clips = _MAX_CLIPS
    while clips > 1:
        yield dataclasses.replace(base, clips_per_call=clips)
        clips //= 2
    yield base
    window = min(num_frames, 4 * base.clip_size)
    base = dataclasses.replace(base, frames_kept=window, lattice_keys=True)
    yield base
    base = dataclasses.replace(base, pair_batch=1, pairs_at_once=16)
    yield base
    base = dataclasses.replace(base, joint_pixels=min(_MIN_PIXELS, base.joint_pixels))
    for start in range(base.clip_size, min(_MIN_CLIP, base.clip_size) - 1, -1):
        size = pairing.clip_size(num_frames, start)
        yield dataclasses.replace(base, clip_size=size, frames_kept=min(num_frames, 4 * size))


def predict(
    plan: Plan,
    num_frames: int,
    height: int,
    width: int,
    config: ReconstructConfig,
    network: NetworkConfig | None,
    resident: int,
) -> dict[str, int]:
    """Returns stage -> peak bytes of the process."""
    pixels = height * width
    base = resident
    video = num_frames * pixels
    prior = (4 if config.prior in ("plane", "none") else 8) * video
    features, kept = _features(plan, num_frames, height, width, config, network)
    base += prior + kept
    stages = {"frame features": base + features}
    late = 0
    decode = _decode_bytes(pixels, network) * plan.pair_batch
    if plan.mode == "flat":
        pairs = pairing.make_pairs(num_frames, config.pairs).num_pairs
        stages["alignment"] = base + pixels * (pairs * _RUN + num_frames * _FRAME) + decode
    else:
        size = plan.clip_size
        clip = pairing.clip_graph(size, config.pairs.clip_symmetric).num_pairs
        count = len(pairing.clips(num_frames, size))
        clips = min(plan.clips_per_call, count)
        late = _LAST_CALL if count % clips else 0
        done = _RESULT * video
        call = clips * (clip * _STACKED + size * _FRAME) * pixels
        call = max(call, call * (count % clips) // clips + late)
        keys = _key_frame_bytes(plan, num_frames, height, width, config)
        lattice, pairs = _joint_bytes(plan, num_frames, height, width, config)
        stages["key frames"] = base + keys + decode
        stages["clips"] = base + done + call + lattice + decode
        # The results of the clips are there twice while they are joined.
        stages["joint refinement"] = base + 2 * done + pairs
    stages["outputs"] = base + _OUTPUT * video + _CLOUD
    for name in stages:
        stages[name] += _PROGRAMS if plan.mode == "flat" else _PROGRAMS_SO_FAR[name]
        stages[name] += late if name in ("joint refinement", "outputs") else 0
        stages[name] += 0 if network is None or plan.mode == "flat" else _NETWORK
    return {name: int(size) for name, size in stages.items()}


def _features(plan, num_frames, height, width, config, network) -> tuple[int, int]:
    """Bytes of what a predictor needs while it prepares, and of what it keeps for all pairs."""
    pixels = height * width
    if network is None:
        cells = flow_lattice.num_cells(height, width)
        kept = _RESULT * num_frames * pixels
        return int(num_frames * cells * (_CELL + _COLUMNS)) + _BLOCK, kept
    per_frame = cost.feature_bytes(network, height, width, plan.reuse)
    return _decode_bytes(pixels, network) * plan.pair_batch, plan.frames_kept * per_frame


def _decode_bytes(pixels: int, network: NetworkConfig | None) -> int:
    """Bytes of the dense heads for one pair: the widest maps at full and at half resolution."""
    if network is None:
        return 0
    if network.head == "linear":
        return 64 * pixels
    return 4 * pixels * (3 * network.dpt_last_dim + 2 * network.dpt_feature_dim)


def _key_frame_bytes(plan, num_frames, height, width, config) -> int:
    graph, pixels = _key_frames(num_frames, plan.clip_size, config), height * width
    if not plan.lattice_keys:
        return pixels * (graph.num_pairs * _RUN + graph.num_frames * _FRAME)
    cells = lattice_pixels(height, width, plan, config)
    at_once = min(plan.pairs_at_once, graph.num_pairs)
    return at_once * pixels * _POINT + cells * (
        graph.num_pairs * 3 * _POINT + graph.num_frames * _FRAME
    )


def _key_frames(num_frames, size, config):
    count = len(pairing.clips(num_frames, size))
    return pairing.key_frame_graph(
        count, config.pairs.clip_symmetric, config.pairs.max_complete_key_frames
    )


def lattice_pixels(height: int, width: int, plan: Plan, config: ReconstructConfig) -> int:
    """Returns how many pixels of a frame the joint refinement really looks at."""
    alignment = dataclasses.replace(config.alignment, joint_pixels=plan.joint_pixels)
    stride = joint.stride_of(height, width, alignment)
    return len(range(stride // 2, height, stride)) * len(range(stride // 2, width, stride))


def joint_pairs(num_frames: int, clip_size: int, config: ReconstructConfig) -> int:
    """Returns how many pairs it looks at: of all clips, of their borders and of key frames."""
    clips = pairing.clips(num_frames, clip_size)
    inside = sum(
        pairing.clip_graph(len(clip), config.pairs.clip_symmetric).num_pairs for clip in clips
    )
    borders = len(pairing.border_pairs(clips))
    return inside + borders + _key_frames(num_frames, clip_size, config).num_pairs


def _joint_bytes(plan, num_frames, height, width, config) -> tuple[int, int]:
    """Bytes of the lattice that the clips leave, and of its refinement.

    Refined, it is there as parts, in one piece and laid out for the loop.
    """
    if not (config.alignment.join_rescale and config.alignment.joint_iterations):
        return 0, 0
    pairs = joint_pairs(num_frames, plan.clip_size, config)
    cells = lattice_pixels(height, width, plan, config)
    # Flow goes both ways; a symmetric graph has both ways as pairs.
    kept = pairs * cells * (_POINT + (1 if config.pairs.clip_symmetric else 2) * _FIELD)
    return kept, 3 * kept + num_frames * cells * _FRAME
