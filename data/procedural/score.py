"""How well a reconstruction of a rendered clip agrees with its truth."""

from __future__ import annotations

import numpy as np

from align3r_jax.evaluation import summary
from align3r_jax.structs import Array, Scene
from data.procedural.clip import ProceduralClip


def score(
    scene: Scene,
    clip: ProceduralClip,
    *,
    prior_depth: Array | None = None,
    with_masks: bool = True,
) -> dict[str, float]:
    """Returns what `evaluation.summary.evaluate_scene` says of a scene of the clip's frames.

    prior_depth: (T, H, W), scored beside the scene. with_masks=False leaves out the motion masks
    (those of the scene were not found but given).
    """
    return summary.evaluate_scene(
        np.asarray(scene.depth),
        np.asarray(scene.world_from_cam),
        clip.depth,
        clip.world_from_cam,
        dynamic_mask=scene.dynamic_mask if with_masks else None,
        truth_dynamic_mask=clip.dynamic_mask,
        prior_depth=prior_depth,
        intrinsics=scene.intrinsics,
        truth_intrinsics=clip.intrinsics,
    )
