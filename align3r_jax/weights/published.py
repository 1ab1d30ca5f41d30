"""Published weights of depth and flow networks: names, files, licences, and where to look for them.

Nothing here downloads: the user fetches a file from its authors, under their terms, and puts it
into a folder of the search path (or names it with a flag).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align3r_jax.errors import UserError
from align3r_jax.io import user_folder
from align3r_jax.weights import kinds

SEARCH_VARIABLE = "ALIGN3R_JAX_WEIGHTS"
_CHOICES = ("pos_embed_mode",)  # settings in which one and the same weights may differ
_SUFFIXES = ("", ".safetensors", ".pth", ".pt")
_APACHE, _BSD = "Apache-2.0", "BSD-3-Clause"
_NON_COMMERCIAL = "CC BY-NC 4.0, no commercial use"
_APPLE = "Apple's model licence (apple-amlr), research only"


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights that users may have.

    name: what settings call them. kind: a name of `kinds.KINDS`. preset: of its known configs;
    None: several fit. files: names that they are published under, hub repositories by their last
    part. origin: where to get them. arguments: settings that the file does not tell.
    """

    name: str
    kind: str
    preset: str | None
    files: tuple[str, ...]
    origin: str
    licence: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def free(self) -> bool:
        """Whether commercial use is allowed."""
        return self.licence in (_APACHE, _BSD)


def _depth_anything() -> list[Published]:
    found = []
    for size, letters in (("small", "vits"), ("base", "vitb"), ("large", "vitl")):
        licence = _APACHE if size == "small" else _NON_COMMERCIAL
        name = f"depth_anything_v2_{size}"
        file, hub = f"depth_anything_v2_{letters}.pth", f"Depth-Anything-V2-{size.title()}-hf"
        origin = (
            f"{file} of the project Depth-Anything-V2, or the folder of the Hugging Face "
            f"repository depth-anything/{hub}"
        )
        found.append(Published(name, "depth_anything", name, (file, hub), origin, licence))
        for place, data, max_depth in (("indoor", "hypersim", 20.0), ("outdoor", "vkitti", 80.0)):
            name = f"depth_anything_v2_metric_{place}_{size}"
            file = f"depth_anything_v2_metric_{data}_{letters}.pth"
            hub = f"Depth-Anything-V2-Metric-{place.title()}-{size.title()}-hf"
            origin = (
                f"{file} of the project Depth-Anything-V2 (metric_depth), or the folder of the "
                f"Hugging Face repository depth-anything/{hub}"
            )
            found.append(
                Published(
                    name, "depth_anything", name, (file, hub), origin, licence,
                    {"max_depth": max_depth},
                )
            )  # fmt: skip
    return found


PUBLISHED: dict[str, Published] = {
    entry.name: entry
    for entry in (
        Published(
            "depth_pro", "depth_pro", "depth_pro", ("depth_pro.pt", "DepthPro-hf"),
            "depth_pro.pt of the project ml-depth-pro, or the folder of the Hugging Face "
            "repository apple/DepthPro-hf", _APPLE,
        ),
        *_depth_anything(),
        Published(
            "raft", "raft", None,
            ("raft-things.pth", "raft-sintel.pth", "raft-kitti.pth", "raft-chairs.pth"),
            "raft-things.pth (or raft-sintel.pth) of the project RAFT", _BSD,
        ),
        Published(
            "sea_raft", "sea_raft", None,
            (
                "Tartan-C-T432x960-M.pth", "Tartan-C-T-TSKH-spring540x960-M.pth",
                "Tartan-C-T-TSKH-spring540x960-S.pth",
            ),
            "Tartan-C-T432x960-M.pth (or another file) of the project SEA-RAFT, or the folder of a "
            "Hugging Face repository MemorySlices/Tartan-...", _BSD,
        ),
    )
}  # fmt: skip


def names_of(*kinds: str) -> tuple[str, ...]:
    """Returns the names of the published weights of these kinds."""
    return tuple(entry.name for entry in PUBLISHED.values() if entry.kind in kinds)


def search_path() -> list[Path]:
    """Returns the folders that are looked into: those of $ALIGN3R_JAX_WEIGHTS, the user's cache."""
    named = os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep)
    folders = [Path(folder).expanduser() for folder in named if folder]
    return [*folders, user_folder.cache_folder("weights")]


def locate(name: str, flag: str) -> Path:
    """Returns the file or folder of published weights on the search path.

    Looked for, in each folder: NAME (a converted or hub folder), NAME.safetensors, NAME.pth,
    NAME.pt, then the published names. flag: the setting that names them directly. Raises UserError
    that says where to get them, under which licence, and how to convert them.
    """
    entry = PUBLISHED[name]
    candidates = [name + suffix for suffix in _SUFFIXES] + list(entry.files)
    for folder in search_path():
        for candidate in candidates:
            if (folder / candidate).exists():
                return folder / candidate
    places = ", ".join(str(folder) for folder in search_path())
    target = search_path()[0] / name
    raise UserError(
        f"No weights of {name} were found in {places}. Get {entry.origin} (licence: "
        f"{entry.licence}), then either name it with {flag}=FILE, or convert it once: python -m "
        f"experiments.convert_weights --input=FILE --output={target}"
        + (f" --preset={name}" if entry.arguments else "")
    )


def name_of(kind: str, config: Any) -> str | None:
    """Returns the name of the published weights that have these settings, None if none do."""
    for entry in PUBLISHED.values():
        if entry.kind == kind and entry.preset is not None:
            preset = kinds.get(kind).known_configs[entry.preset]
            free = {name: getattr(preset, name) for name in _CHOICES if hasattr(preset, name)}
            if dataclasses.replace(config, **free) == preset:
                return entry.name
    return None


def licence_notice(name: str | None) -> str | None:
    """Returns a sentence about weights that may not be used commercially; None for free ones."""
    entry = PUBLISHED.get(name or "")
    if entry is None or entry.free:
        return None
    return f"The weights of {name} have a licence of their own: {entry.licence}."
