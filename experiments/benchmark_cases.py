"""One case of `experiments.benchmark`: a preset on a video of some length, as JSON-able facts."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from align3r_jax import config as config_lib
from align3r_jax import stages
from align3r_jax.config import NetworkConfig, ReconstructConfig
from align3r_jax.errors import UserError
from experiments import (
    benchmark_alignment,
    benchmark_measure,
    benchmark_pairwise,
    benchmark_peer,
    benchmark_prior,
    benchmark_rows,
    benchmark_stages,
)
from experiments.benchmark_pairwise import Budget

_FLOW_SIZE = 320  # working size of the main command without weights
_ALIGNED_FRAMES = config_lib.PairConfig.flat_max_frames  # of the Adam iteration that is measured


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags that change figures."""

    size: int
    dtype: str
    prior: str
    pair_batch: int
    sample: int
    full: bool
    quick: bool
    video: str | None

    def facts(self) -> dict[str, Any]:
        """Returns them as JSON holds them."""
        return dataclasses.asdict(self)


def run(
    preset: str,
    num_frames: int,
    video: Path,
    settings: Settings,
    folder: Path,
    peer: benchmark_peer.Peer | None = None,
) -> dict[str, Any]:
    """Measures a preset on the first frames of a video; returns rows, totals and ceilings.

    Raises UserError if the video is shorter, or the checkout of the peer does not run.
    """
    ceilings = benchmark_measure.ceilings(settings.quick, settings.dtype)
    stages.give_back_memory()  # what was rendered or measured before counts in no stage
    network = benchmark_pairwise.config_of(preset)
    size = settings.size or (_FLOW_SIZE if network is None else network.img_size)
    prior = _prior(settings.prior, network, preset)
    plain = prior if prior in benchmark_prior.PLAIN else "plane"
    config = ReconstructConfig(prior=plain, pair_batch=settings.pair_batch)
    flow = benchmark_stages.run(
        video, num_frames, size, config, folder / "benchmark_result", network is None
    )
    height, width = flow.frames.images.shape[1:3]
    rows = list(flow.rows)
    budget = Budget(
        settings.pair_batch, math.inf if settings.full else Budget.seconds, settings.sample
    )
    if prior not in benchmark_prior.PLAIN:
        rows = [row for row in rows if row.stage != "prior"]
        rows.append(benchmark_prior.row(prior, flow, budget, settings.dtype, ceilings))
    model = benchmark_pairwise.load(preset)
    if model is not None:
        rows += benchmark_pairwise.rows(model, flow, budget, settings.dtype, ceilings)
    del model
    rows.append(benchmark_alignment.iteration_row(min(num_frames, _ALIGNED_FRAMES), height, width))
    order = [*benchmark_rows.STAGES, benchmark_rows.HEADS, benchmark_rows.ITERATION]
    rows.sort(key=lambda row: order.index(row.stage))
    # Around the run: on a shared machine they change from minute to minute.
    ceilings = ceilings.merged(benchmark_measure.ceilings(settings.quick, settings.dtype))
    case = {
        "preset": preset,
        "frames": num_frames,
        "height": height,
        "width": width,
        "mode": flow.mode,
        "prior": prior,
        "ceilings": dataclasses.asdict(ceilings),
        "summary": benchmark_rows.summary(rows, num_frames, ceilings),
        "rows": [row.as_dict(ceilings) for row in rows],
    }
    if peer is not None:
        case["peer"] = benchmark_peer.compare(peer, flow, rows, settings.full)
    return case


def _prior(spec: str, network: NetworkConfig | None, preset: str) -> str:
    """What "auto" means for a preset; UserError for networks that cannot go without a prior."""
    has_branch = network is not None and network.prior_branch
    needed = network is not None and has_branch and network.prior_encoding == "minmax"
    if spec == "auto":
        if needed:
            return "depth_anything_v2_small"
        return "plane" if has_branch or network is None else "none"
    if spec == "none" and needed:
        raise UserError(f"{preset} needs a depth prior; --prior=none gives none.")
    if network is not None and not has_branch and spec != "none":
        raise UserError(f"{preset} has no prior branch; use --prior=none, or leave it out.")
    return spec
