"""A finished result in the formats of other programs.

    python -m experiments.export outputs/my --to=colmap,nerfstudio,ply
    python -m experiments.export outputs/my --to=png16,exr --resolution=original

Nothing is computed anew: pictures, depth, cameras and points come from the result folder; the
original resolution also reads the video again. Each format becomes a folder of its own in
`outputs/my/export`; docs/outputs.md says what is in them, with axes and units.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from align3r_jax.errors import UserError
from align3r_jax.io import export, export_formats, pointcloud
from data import settings_text
from experiments import cli

_DEFAULT = export_formats.ExportOptions()
TO = flags.DEFINE_list(
    "to", None, "Formats, with commas between: " + "; ".join(
        f"{name} ({entry.text})" for name, entry in export_formats.FORMATS.items()
    ) + ".", required=True,
)  # fmt: skip
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the formats' folders; default: export/ in the result."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace earlier exports of the same formats.")
RESOLUTION = flags.DEFINE_enum(
    "resolution", _DEFAULT.resolution, ["network", "original"],
    "Of pictures, depth and intrinsics: the working size of the result, or the video's own.",
)  # fmt: skip
VIDEO = flags.DEFINE_string(
    "video", None, "The video, folder or glob that the result was made from, for "
    "--resolution=original; default: where it was then.",
)  # fmt: skip
SPLIT = flags.DEFINE_enum(
    "split", _DEFAULT.split, ["auto", "static", "dynamic", "both"],
    "What stands still, what moves by itself, or both. auto: static for colmap, colmap_bin and "
    "nerfstudio, whose scenes stand still; both for the others.",
)  # fmt: skip
POINTS = flags.DEFINE_integer(
    "points", _DEFAULT.points, "At most so many static and so many moving points, spread evenly "
    "over space.", lower_bound=1,
)  # fmt: skip
MIN_CONFIDENCE = flags.DEFINE_float(
    "min_confidence", _DEFAULT.rules.min_confidence, "Pixels below it become no points (1: all)."
)
EDGE = flags.DEFINE_float(
    "edge", _DEFAULT.rules.edge, "Pixels where inverse depth bends by more than this fraction "
    "become no points; 0: any may.", lower_bound=0,
)  # fmt: skip

# The option of the library that each flag sets.
_OPTION_OF = (
    (RESOLUTION, export_formats.RESOLUTION),
    (VIDEO, export_formats.RESOLUTION),
    (SPLIT, export_formats.SPLIT),
    (POINTS, export_formats.POINTS),
    (MIN_CONFIDENCE, export_formats.POINTS),
    (EDGE, export_formats.POINTS),
)


def main(argv: Sequence[str]) -> None:
    """Writes the formats and says where they are."""
    if len(argv) != 2:
        raise UserError(
            "Name the result to export, the folder that was given as --output of the "
            "reconstruction: python -m experiments.export outputs/my --to=ply."
        )
    names = [name.strip() for name in TO.value if name.strip()]
    _check(names)
    options = export_formats.ExportOptions(
        resolution=RESOLUTION.value,
        split=SPLIT.value,
        points=POINTS.value,
        rules=pointcloud.PointFilter(min_confidence=MIN_CONFIDENCE.value, edge=EDGE.value),
    )
    paths = export.export_result(
        argv[1], names, options,
        output=OUTPUT.value, source=VIDEO.value, overwrite=OVERWRITE.value,
    )  # fmt: skip
    for name, path in paths.items():
        print(f"{name}: {export_formats.FORMATS[name].text}: {_shown(path)}")


def _check(names: Sequence[str]) -> None:
    """Raises UserError for unknown formats, and for flags that none of the formats heeds."""
    known = list(export_formats.FORMATS)
    if not names:
        raise UserError(f"--to names no format; known are {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise UserError(settings_text.unknown(f"format '{name}' of --to", name, known))
    used = frozenset().union(*(export_formats.FORMATS[name].uses for name in names))
    for flag, option in _OPTION_OF:
        if flag.value != flag.default and option not in used:
            raise UserError(
                f"--{flag.name} changes nothing about {', '.join(names)}; leave it out."
            )
    if VIDEO.value is not None and RESOLUTION.value == "network":
        raise UserError("--video is read for --resolution=original alone; give both or neither.")


def _shown(path: Path) -> str:
    """The path from here if it lies below, else the whole."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    cli.run(main, arguments=1)
