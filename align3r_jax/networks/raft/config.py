"""Settings of the flow networks; the defaults are the published RAFT (large) and SEA-RAFT M."""

from __future__ import annotations

import dataclasses

DOWNSCALE = 8  # the networks estimate flow on a grid of one cell per 8 x 8 pixels


@dataclasses.dataclass(frozen=True)
class RaftConfig:
    """RAFT (Teed and Deng, ECCV 2020), the large network.

    widths: channels of the three encoder stages. feature_dim: of the matching features.
    hidden_dim, context_dim: of the recurrent state and of what it is fed beside motion.
    motion_dims: (correlation, correlation, flow, flow, output) of the motion encoder; the output
    counts the two flow channels. head_dim: inside the flow and mask heads.
    """

    widths: tuple[int, int, int] = (64, 96, 128)
    blocks: tuple[int, int, int] = (2, 2, 2)
    feature_dim: int = 256
    hidden_dim: int = 128
    context_dim: int = 128
    motion_dims: tuple[int, int, int, int, int] = (256, 192, 128, 64, 128)
    head_dim: int = 256
    corr_levels: int = 4
    corr_radius: int = 4
    iterations: int = 20  # what Align3R runs; published with 12 to 32


@dataclasses.dataclass(frozen=True)
class SeaRaftConfig:
    """SEA-RAFT (Wang, Lipson and Deng, ECCV 2024). `blocks` (2, 2, 2) is S, (3, 4, 6) M and L.

    See `RaftConfig`. refine_blocks: refinement blocks of one update, refine_expansion: of their
    inner layer (channels = refine_expansion * hidden_dim). var_min, var_max: bounds of the log
    scales of the uncertainty.
    """

    widths: tuple[int, int, int] = (64, 128, 256)
    blocks: tuple[int, int, int] = (3, 4, 6)
    feature_dim: int = 256
    hidden_dim: int = 128
    context_dim: int = 128
    motion_dims: tuple[int, int, int, int, int] = (256, 192, 128, 64, 128)
    head_dim: int = 256
    corr_levels: int = 4
    corr_radius: int = 4
    refine_blocks: int = 2
    refine_expansion: int = 4
    var_min: float = 0.0
    var_max: float = 10.0
    iterations: int = 4  # as published: 4 (S, M) or 12 (L); Align3R runs 20


AnyFlowConfig = RaftConfig | SeaRaftConfig

# L is the weights of M with more iterations.
FLOW_PRESETS: dict[str, AnyFlowConfig] = {
    "raft": RaftConfig(),
    "sea_raft_s": SeaRaftConfig(blocks=(2, 2, 2)),
    "sea_raft_m": SeaRaftConfig(),
    "sea_raft_l": SeaRaftConfig(iterations=12),
}
