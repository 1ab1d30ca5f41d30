"""Where the depth prior of an image lies, for every data set and for a user's own clips.

One function for all who write priors and all who read them. NAME says which network made the file:
`depthpro` (metres), `depthanything` (inverse depth), `depthmetric` (metres).

| layout | image | prior |
|---|---|---|
| beside | `.../F.png` (training sets: `.../X_rgb.jpg`) | `.../F_pred_depth_NAME.npz` |
| sibling | Bonn, TUM: `.../rgb_110/F.png` | `.../rgb_110_depth_prediction_NAME/F.npz` |
| scene | Sintel, KITTI: `.../clean/SCENE/F.png` | `.../depth_prediction_NAME/SCENE/F.npz` |
| davis | `.../JPEGImages/480p/SCENE/F.jpg` | `.../depth_prediction_NAME/1080p/SCENE/F.npz` |

A file holds `depth`, (H, W) float32 of the image's size, and, if known, `focallength_px`, float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import atomic

LAYOUTS = ("beside", "sibling", "scene", "davis")
_PARENTS = {"beside": 1, "sibling": 2, "scene": 3, "davis": 4}  # folders above that are rewritten
_RGB = "_rgb"  # ending of the images of processed training sets


def name_of(kind: str, metric: bool) -> str:
    """Returns NAME of a network of this kind (`weights.kinds`)."""
    if kind == "depth_pro":
        return "depthpro"
    return "depthmetric" if metric else "depthanything"


def prior_path(image: str | Path, name: str, layout: str = "beside") -> Path:
    """Returns the file of the depth prior `name` of an image.

    Raises UserError if the layout is unknown or the image does not lie deep enough for it.
    """
    image = Path(image)
    if layout not in LAYOUTS:
        raise UserError(f"The layout '{layout}' is unknown; known are {', '.join(LAYOUTS)}.")
    if len(image.absolute().parts) <= _PARENTS[layout]:
        raise UserError(
            f"The image '{image}' does not lie in the folders of the layout '{layout}'."
        )
    file = f"{image.stem}.npz"
    if layout == "beside":
        return image.with_name(f"{image.stem}_pred_depth_{name}.npz")
    image = image.absolute()
    folder = image.parent
    if layout == "sibling":
        return folder.with_name(f"{folder.name}_depth_prediction_{name}") / file
    above = folder.parent.parent if layout == "scene" else folder.parent.parent.parent
    within = Path(folder.name) if layout == "scene" else Path("1080p") / folder.name
    return above / f"depth_prediction_{name}" / within / file


def write_prior(path: Path, depth: np.ndarray, focal: float | None) -> None:
    """Writes one depth map (H, W), whole or not at all; focal in pixels of the map, or None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"depth": np.asarray(depth, np.float32)}
    if focal is not None:
        arrays["focallength_px"] = np.float32(focal)
    with atomic.new_file(path) as file:
        np.savez_compressed(file, **arrays)


def focal_of_training_image(image: str | Path) -> float | None:
    """Returns the focal in pixels of a processed training image, from the metadata beside it.

    `<id>_metadata.npz` of `<id>_rgb.jpg`: the first number of `camera_intrinsics`. None if there
    is no such file. Raises UserError if it is unreadable.
    """
    image = Path(image)
    path = image.with_name(f"{image.stem.removesuffix(_RGB)}_metadata.npz")
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return float(stored["camera_intrinsics"][0, 0])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"'{path}' holds no camera_intrinsics that can be read ({error})."
        ) from error
