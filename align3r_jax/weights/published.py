"""Published weights of depth and flow networks: names, files, licences, and where to look for them.

Nothing here downloads: the user fetches a file from its authors, under their terms, and puts it
into a folder of the search path (or names it with a flag).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
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
_SHARE_ALIKE = "CC BY-NC-SA 4.0, no commercial use"
_NONE_STATED = f"none stated; trained from DUSt3R's weights, so treat as {_SHARE_ALIKE}"
_APPLE = "Apple's model licence (apple-amlr), research only"


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights that users may have.

    name: what settings call them. kind: a name of `kinds.KINDS`. preset: of its known configs;
    None: several fit. files: names that they are published under, hub repositories by their last
    part. origin: where to get them. megabytes: size of the authors' file, about. arguments:
    settings that the file does not tell.
    """

    name: str
    kind: str
    preset: str | None
    files: tuple[str, ...]
    origin: str
    licence: str
    megabytes: int
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def free(self) -> bool:
        """Whether commercial use is allowed."""
        return self.licence in (_APACHE, _BSD)


def _both(name: str) -> tuple[str, ...]:
    """A hub folder, or the authors' file, of one name."""
    return name, f"{name}.pth"


def _depth_anything() -> list[Published]:
    found = []
    for size, letters, megabytes in (
        ("small", "vits", 99), ("base", "vitb", 390), ("large", "vitl", 1341),
    ):  # fmt: skip
        licence = _APACHE if size == "small" else _NON_COMMERCIAL
        name = f"depth_anything_v2_{size}"
        file, hub = f"depth_anything_v2_{letters}.pth", f"Depth-Anything-V2-{size.title()}-hf"
        origin = (
            f"{file} of the project Depth-Anything-V2, or the folder of the Hugging Face "
            f"repository depth-anything/{hub}"
        )
        found.append(Published(name, "depth_anything", name, (file, hub), origin, licence,
                               megabytes))  # fmt: skip
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
                    name, "depth_anything", name, (file, hub), origin, licence, megabytes,
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
            "repository apple/DepthPro-hf", _APPLE, 1904,
        ),
        *_depth_anything(),
        Published(
            "raft", "raft", None,
            ("raft-things.pth", "raft-sintel.pth", "raft-kitti.pth", "raft-chairs.pth"),
            "raft-things.pth (or raft-sintel.pth) of the project RAFT", _BSD, 21,
        ),
        Published(
            "sea_raft", "sea_raft", None,
            (
                "Tartan-C-T432x960-M.pth", "Tartan-C-T-TSKH-spring540x960-M.pth",
                "Tartan-C-T-TSKH-spring540x960-S.pth",
            ),
            "Tartan-C-T432x960-M.pth (or another file) of the project SEA-RAFT, or the folder of a "
            "Hugging Face repository MemorySlices/Tartan-...", _BSD, 79,
        ),
    )
}  # fmt: skip

# Pairwise networks: their files are named with --weights, never looked for by a setting's name.
PAIRWISE: dict[str, Published] = {
    entry.name: entry
    for entry in (
        Published(
            "align3r_depthpro", kinds.PAIRWISE, "align3r_vitl_512_dpt",
            _both("Align3R_DepthPro_ViTLarge_BaseDecoder_512_dpt"),
            "the folder of the Hugging Face repository "
            "cyun9286/Align3R_DepthPro_ViTLarge_BaseDecoder_512_dpt (its prior: depth_pro)",
            _NONE_STATED, 2412,
        ),
        Published(
            "align3r_depthanything", kinds.PAIRWISE, "align3r_vitl_512_dpt",
            _both("Align3R_DepthAnythingV2_ViTLarge_BaseDecoder_512_dpt"),
            "the folder of the Hugging Face repository "
            "cyun9286/Align3R_DepthAnythingV2_ViTLarge_BaseDecoder_512_dpt (its prior: "
            "depth_anything_v2_large)", _NONE_STATED, 2412,
        ),
        Published(
            "monst3r", kinds.PAIRWISE, "monst3r_vitl_512_dpt",
            _both("MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt"),
            "MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt of the project MonST3R (no prior)",
            _SHARE_ALIKE, 2285,
        ),
        Published(
            "dust3r", kinds.PAIRWISE, "dust3r_vitl_512_dpt",
            _both("DUSt3R_ViTLarge_BaseDecoder_512_dpt"),
            "DUSt3R_ViTLarge_BaseDecoder_512_dpt of the project DUSt3R, or the folder of the "
            "Hugging Face repository naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt (no prior)",
            _SHARE_ALIKE, 2285,
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
    found = find(entry, search_path())
    if found is not None:
        return found
    places = ", ".join(str(folder) for folder in search_path())
    raise UserError(
        f"No weights of {name} were found in {places}. Get {entry.origin} (licence: "
        f"{entry.licence}), then either name it with {flag}=FILE, or convert it once: "
        f"{convert_command(entry, search_path()[0])}"
    )


def find(entry: Published, folders: Iterable[Path]) -> Path | None:
    """Returns the first of `folders`' files and folders that is named as these weights are."""
    names = [*(entry.name + suffix for suffix in _SUFFIXES), *entry.files]
    for folder in folders:
        for name in names:
            if (folder / name).exists():
                return folder / name
    return None


def convert_command(entry: Published, folder: Path) -> str:
    """Returns the command that converts the authors' FILE to where it is found again."""
    preset = f" --preset={entry.name}" if entry.arguments else ""
    output = folder / entry.name
    return f"python -m experiments.convert_weights --input=FILE --output={output}{preset}"


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
