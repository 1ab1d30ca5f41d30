"""Settings as frozen dataclasses; the defaults are what `experiments.reconstruct` runs.

A config prints itself, is written beside every result and rebuilds the run from its dictionary.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

from align3r_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The pairwise network (Align3R; DUSt3R and MonST3R when `prior_branch` is off).

    Defaults: ViT-L 512 DPT. Names follow CroCo v2.
    """

    enc_embed_dim: int = 1024
    enc_depth: int = 24
    enc_num_heads: int = 16
    dec_embed_dim: int = 768
    dec_depth: int = 12
    dec_num_heads: int = 12
    mlp_ratio: int = 4
    patch_size: int = 16
    rope_base: float = 100.0
    img_size: int = 512  # long side (512 rule) or short side (224 rule) of the working size
    prior_branch: bool = True  # whether a depth prior is read at all
    # Input of the prior branch: "minmax" as Align3R (three axes in [0, 1]); "ray" for the small
    # network (x / z, y / z, log z minus its median over the frame).
    prior_encoding: Literal["minmax", "ray"] = "minmax"
    # How the prior reaches the network: "zero_conv" as Align3R; "concat" (an ablation of its
    # paper): its z, as encoded, is a fourth channel of the image, and there is no branch.
    prior_injection: Literal["zero_conv", "concat"] = "zero_conv"
    head: Literal["dpt", "linear"] = "dpt"
    # "direct": Align3R. "anchored" (small network): points = prior point map * exp(s)
    # + depth * offset.
    output: Literal["direct", "anchored"] = "direct"
    depth_mode: Literal["exp", "linear", "square"] = "exp"
    conf_mode: Literal["exp", "sigmoid"] = "exp"
    conf_min: float = 1.0
    conf_max: float = float("inf")
    dpt_layer_dims: tuple[int, int, int, int] = (96, 192, 384, 768)
    dpt_feature_dim: int = 256
    dpt_last_dim: int = 128

    @property
    def num_prior_blocks(self) -> int:
        """Self-attention blocks of the prior branch (4 for 12 decoder blocks)."""
        injected = self.prior_branch and self.prior_injection == "zero_conv"
        return self.dec_depth // 2 - 2 if injected else 0

    @property
    def dpt_hooks(self) -> tuple[int, int, int, int]:
        return (0, self.dec_depth * 2 // 4, self.dec_depth * 3 // 4, self.dec_depth)


NETWORK_PRESETS: dict[str, NetworkConfig] = {
    "dust3r_vitl_512_dpt": NetworkConfig(prior_branch=False),
    "dust3r_vitl_224_linear": NetworkConfig(prior_branch=False, head="linear", img_size=224),
    "monst3r_vitl_512_dpt": NetworkConfig(prior_branch=False),
    "align3r_vitl_512_dpt": NetworkConfig(),
    "tiny_align3r": NetworkConfig(
        enc_embed_dim=96, enc_depth=4, enc_num_heads=6, dec_embed_dim=64, dec_depth=8,
        dec_num_heads=2, dpt_layer_dims=(12, 24, 48, 96), dpt_feature_dim=32, dpt_last_dim=16,
    ),
    "tiny_dust3r_dpt": NetworkConfig(
        enc_embed_dim=96, enc_depth=4, enc_num_heads=6, dec_embed_dim=64, dec_depth=8,
        dec_num_heads=2, dpt_layer_dims=(12, 24, 48, 96), dpt_feature_dim=32, dpt_last_dim=16,
        prior_branch=False,
    ),
    "tiny_dust3r_linear": NetworkConfig(
        enc_embed_dim=96, enc_depth=4, enc_num_heads=6, dec_embed_dim=64, dec_depth=8,
        dec_num_heads=2, prior_branch=False, head="linear",
    ),
    # The shipped network: at most 8 M parameters, works with and without a prior.
    "align3r_small": NetworkConfig(
        enc_embed_dim=128, enc_depth=5, enc_num_heads=4, dec_embed_dim=128, dec_depth=4,
        dec_num_heads=4, img_size=224, prior_encoding="ray", output="anchored",
        dpt_layer_dims=(16, 32, 64, 128), dpt_feature_dim=32, dpt_last_dim=16,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """Which pairs are predicted. `graph` is a string of the reference (`swinstride-5-noncyclic`).

    mode: "flat" = one graph over all frames; "hierarchical" = key frames, then clips;
    "auto" = hierarchical above `flat_max_frames`; "feedforward" = every frame with an anchor frame,
    no alignment (`FeedForwardConfig`).
    """

    graph: str = "swinstride-5-noncyclic"
    symmetrize: bool = True
    mode: Literal["auto", "flat", "hierarchical", "feedforward"] = "auto"
    flat_max_frames: int = 32
    clip_size: int = 10  # start value; the rule of the paper's code lowers it
    clip_symmetric: bool = True  # H-sym (odd offsets, both directions) or H-half (all i < j)
    # So many key frames all meet one another (parity: no limit); of more, each meets those 1, 2,
    # 4 and 8 away, because all pairs would be quadratic in the length of the video.
    max_complete_key_frames: int = 16


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Optical flow between frames.

    consistency: "reference" (sum of components < 3 px) or "norm" (Euclidean).
    """

    source: str = "dis"  # dis, raft, sea_raft, none, files:DIR
    weights: str | None = None  # of raft and sea_raft; None: looked for by name
    # Updates of raft and sea_raft: 20 in the reference implementation; SEA-RAFT was published
    # with 4 (12 for its L), which is about twice as fast.
    iterations: int = 20
    quality: Literal["medium", "high"] = "medium"
    consistency: Literal["norm", "reference"] = "norm"
    consistency_px: float = 1.0
    min_consistent: float = 0.2  # pairs below have no flow term


def check_schedule(name: str) -> None:
    """Raises UserError unless `name` is "linear", "cosine", "cycle" or "cycleK" with K > 0."""
    if not re.fullmatch(r"linear|cosine|cycle([1-9]\d*)?", name):
        raise UserError(
            f"Unknown schedule '{name}'; use linear, cosine or cycleK (K linear ramps)."
        )


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Global alignment. Defaults: Align3R's demo (variant F), with its defects fixed.

    Every switch that departs from the reference implementation names the value for parity.
    """

    iterations: int = 300
    lr: float = 0.01
    lr_min: float = 1e-3
    schedule: str = "linear"  # linear, cosine or cycleK: K linear ramps
    # "gauss_newton": second order on a lattice of pixels, then the depth of every pixel. "auto":
    # `pipeline.reconstruct` takes it (Adam still refines clips together); the aligner by itself
    # takes Adam.
    solver: Literal["auto", "adam", "gauss_newton"] = "adam"
    lattice_stride: int = 0  # every n-th pixel in x and y; 0: about 4,100 pixels of a frame
    gauss_newton_steps: int = 18  # at most
    depth_rounds: int = 8  # reweighting rounds of the depth of every pixel
    # How point maps and their weights are kept: 16 bits halve memory and traffic. float16 holds
    # coordinates of 1e-4 to 6e4 with 11 bits, bfloat16 any with 8. On the recorded scene the loss
    # changes by 1e-5 (bfloat16 5e-3) of itself and depth by 1e-4 (6e-4), median.
    storage_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    distance: Literal["l1", "l2"] = "l1"  # Euclidean norm, or its square
    # f: l1 is sqrt(|r|^2 + f^2) - f, in units of the scene: smooth, for gradients of the result.
    distance_floor: float = 0.0
    confidence_weight: Literal["log", "sqrt", "m1", "id"] = "log"
    shared_focal: bool = True
    optimise_principal_point: bool = False
    optimise_adaptors: bool = False
    normalise_pair_scale: bool = True
    base_scale: float = 0.5
    focal_break: float = 20.0
    adaptor_break: float = 20.0
    min_confidence: float = 3.0  # PnP mask of the initialisation
    smoothness_weight: float = 0.01
    smoothness_translation_weight: float = 1.0
    flow_weight: float = 0.01
    flow_start: float = 0.1  # fraction of the iterations
    flow_gate: float = 25.0  # the flow term is dropped while above; 0 = never
    flow_pixel_cut: float = 50.0
    flow_use_weight: bool = True  # weight by consistency; parity: False
    depth_regulariser_weight: float = 0.0
    known_camera_weight: float = 0.01  # of cameras given as soft priors
    depth_prior_weight: float = 0.0  # of every frame's depth to the depth prior, up to its scale
    depth_prior_shift: bool = False  # fit a shift to the prior too (its zero is arbitrary)
    optimise_two_frames: bool = False  # two frames alone are their two-view scene
    motion_threshold: float = 0.35
    motion_min_error_px: float = 1.0  # parity: 0
    motion_mask_updates: int = 1  # recomputed from the current scene; parity: 0
    outline_masks: bool = True  # the scene's masks end at edges of the images; parity: False
    stale_focal: bool = False  # parity: True
    residual_over_scale: bool = False  # divide residuals by the pair scale (known poses)
    join_rescale: bool = True  # hierarchical: carry the scale across clips; parity: False
    # Hierarchical: iterations that refine all clips together; only after join_rescale. parity: 0
    joint_iterations: int = 150
    joint_pixels: int = 256  # about so many pixels of each frame take part in them
    clean: bool = True  # lower the confidence of points seen through
    clean_tolerance: float = 0.05  # of depth; parity: 0.001, which also drops points for noise
    clean_views: int = 48  # that look at the points of a frame; parity: 0, all frames of the video

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if self.distance_floor < 0:
            raise UserError(f"distance_floor is {self.distance_floor}; it must not be negative.")
        if self.distance_floor > 0 and self.solver == "gauss_newton":
            raise UserError(
                "solver='gauss_newton' rounds off distances by itself; leave distance_floor at 0, "
                "or use solver='adam'."
            )


@dataclasses.dataclass(frozen=True)
class FeedForwardConfig:
    """Real-time mode: every frame against an anchor frame, nothing is revised afterwards.

    anchor: "adaptive" = the current frame takes over when one of the three bars below is missed;
    "first" = the first frame stays; a number N = every N-th frame. Shares are of all pixels, or of
    the weight of those that say anything.
    """

    anchor: str = "adaptive"
    min_overlap: float = 0.6  # share of the frame that the anchor sees
    min_inliers: float = 0.6  # share that agrees with the camera found
    min_confidence: float = 0.5  # mean log confidence, as a share of the best since the anchor
    lost_inliers: float = 0.25  # below, the camera is not believed and that before is kept
    inlier_px: float = 0.01  # of the long side: agreement
    max_lost: int = 5  # frames in a row; then the current one is the anchor, wherever it is
    motion_masks: bool = True  # by optical flow to the frames before

    def __post_init__(self) -> None:
        if self.anchor not in ("adaptive", "first") and not re.fullmatch(r"[1-9]\d*", self.anchor):
            raise UserError(
                f"--anchor={self.anchor}: expected adaptive, first, or a number N of frames after "
                "which the anchor is replaced."
            )


@dataclasses.dataclass(frozen=True)
class ReconstructConfig:
    """Everything `align3r_jax.reconstruct` needs beside the frames."""

    predictor: Literal["auto", "network", "flow"] = "auto"
    # auto: the shipped monocular network where it passed its gates, else a plane; none for
    # networks without a prior branch. Or small, plane, none, files:DIR, or the name of published
    # weights (depth_pro, depth_anything_v2_small, ...).
    prior: str = "auto"
    prior_weights: str | None = None  # file or folder; None: looked for by name
    refine_prior: bool = True  # let the shipped pairwise network clean a prior from files
    pairs: PairConfig = PairConfig()
    flow: FlowConfig = FlowConfig()
    alignment: AlignmentConfig = AlignmentConfig(solver="auto")
    feedforward: FeedForwardConfig = FeedForwardConfig()
    pair_batch: int = 0  # pairs decoded together by a network; 0: 1 on CPUs, 4 elsewhere
    # What a network computes once per frame rather than in every pair (`networks.frame_features`):
    # "auto" is as much as the memory plan has room for.
    feature_reuse: Literal["auto", "tokens", "block", "head"] = "auto"
    feature_memory: int | None = None  # bytes for it on the device; None: half of what is free
    # Align in a shape that videos of similar length share: at most a quarter more work, and no
    # compilation for another length of the same bucket (`alignment.bucketed`).
    buckets: bool = True
    equal_confidence: bool = False  # parity: Align3R's depth evaluation sets all above 1 to 10
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    max_memory: str = ""  # such as "8GB"; what `plan` may use. Empty: half of what is free.


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the config as nested plain dictionaries (JSON-able)."""
    return dataclasses.asdict(config)


def from_dict(kind: type, values: dict[str, Any]) -> Any:
    """Rebuilds a config of `kind`. Raises ValueError naming unknown keys."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"Unknown {kind.__name__} settings {unknown}; known are {sorted(fields)}.")
    built = {}
    for name, value in values.items():
        default = fields[name].default
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            value = from_dict(type(default), value)
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return kind(**built)
