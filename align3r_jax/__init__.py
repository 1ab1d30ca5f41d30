"""Consistent depth, cameras, motion masks and a point cloud from a casual video, in JAX.

    scene = align3r_jax.reconstruct(frames)             # frames: (T, H, W, 3) uint8
    model = align3r_jax.load("weights/align3r")         # converted or official weights
    variables, trace = align3r_jax.align(predictions, graph, priors, config)   # pure: jit, vmap

Names are imported when first used, so that `import align3r_jax` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align3r_jax.alignment.differentiable import align_implicit as align_implicit
    from align3r_jax.alignment.differentiable import align_unrolled as align_unrolled
    from align3r_jax.alignment.solve import align as align
    from align3r_jax.config import AlignmentConfig as AlignmentConfig
    from align3r_jax.config import FlowConfig as FlowConfig
    from align3r_jax.config import NetworkConfig as NetworkConfig
    from align3r_jax.config import PairConfig as PairConfig
    from align3r_jax.config import ReconstructConfig as ReconstructConfig
    from align3r_jax.errors import UserError as UserError
    from align3r_jax.io.scene_folder import load_scene as load_scene
    from align3r_jax.io.scene_folder import save_scene as save_scene
    from align3r_jax.io.video import read_frames as read_frames
    from align3r_jax.pipeline import reconstruct as reconstruct
    from align3r_jax.structs import AlignmentPriors as AlignmentPriors
    from align3r_jax.structs import Frames as Frames
    from align3r_jax.structs import KnownCameras as KnownCameras
    from align3r_jax.structs import PairPredictions as PairPredictions
    from align3r_jax.structs import Scene as Scene
    from align3r_jax.structs import TermWeights as TermWeights
    from align3r_jax.weights.store import load as load

_HOME = {
    "align": "align3r_jax.alignment.solve",
    "align_implicit": "align3r_jax.alignment.differentiable",
    "align_unrolled": "align3r_jax.alignment.differentiable",
    "AlignmentConfig": "align3r_jax.config",
    "AlignmentPriors": "align3r_jax.structs",
    "FlowConfig": "align3r_jax.config",
    "NetworkConfig": "align3r_jax.config",
    "PairConfig": "align3r_jax.config",
    "ReconstructConfig": "align3r_jax.config",
    "UserError": "align3r_jax.errors",
    "load_scene": "align3r_jax.io.scene_folder",
    "save_scene": "align3r_jax.io.scene_folder",
    "read_frames": "align3r_jax.io.video",
    "reconstruct": "align3r_jax.pipeline",
    "Frames": "align3r_jax.structs",
    "KnownCameras": "align3r_jax.structs",
    "PairPredictions": "align3r_jax.structs",
    "Scene": "align3r_jax.structs",
    "TermWeights": "align3r_jax.structs",
    "load": "align3r_jax.weights.store",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'align3r_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
