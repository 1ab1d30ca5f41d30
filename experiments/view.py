"""Looks at a result in space and time: in a browser, as one page that opens offline, or as a video.

    python -m experiments.view outputs/my
    python -m experiments.view outputs/my --save=scene.html
    python -m experiments.view outputs/my --render=out.mp4 --path=follow

Without --save and --render a viewer starts on this computer and is opened in the browser; Ctrl-C
ends it. Nothing is computed anew and the result is left as it is; docs/viewer.md shows pictures.
"""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from align3r_jax.errors import UserError
from align3r_jax.io import pointcloud, scene_folder
from align3r_jax.viewer import camera_path, fly_through, layers, live, static_page
from experiments import cli

_RULES, _LOOK, _FLY = pointcloud.PointFilter(), layers.Look(), fly_through.Options()
SAVE = flags.DEFINE_string(
    "save", None, "Write the viewer as one HTML file that opens offline, instead of starting it."
)
RENDER = flags.DEFINE_string(
    "render", None, "Write a fly-through as an mp4 file (H.264), instead of starting the viewer; "
    "needs no browser and no GPU.",
)  # fmt: skip

# What is shown, by all three.
MIN_CONFIDENCE = flags.DEFINE_float(
    "min_confidence", _LOOK.min_confidence, "Points of lower confidence are hidden (no unit; in "
    "the viewer a slider that starts here, with --save they are left out of the file).",
)  # fmt: skip
MOTION = flags.DEFINE_enum(
    "motion", _LOOK.motion, layers.MOTIONS, "What stands still, what moves by itself, or both."
)
GATHER = flags.DEFINE_enum(
    "gather", _LOOK.gather, layers.GATHERS, "What stands still is shown from all frames, from "
    "those so far (past), or from the current frame alone; what moves always from that alone.",
)  # fmt: skip
COLOUR = flags.DEFINE_enum(
    "colour", "image", layers.COLOURS, "Of the points: the video's own, near is bright, sure is "
    "bright, what moves is red, or from blue at the first frame to red at the last.",
)  # fmt: skip
EDGE = flags.DEFINE_float(
    "edge", _RULES.edge, "Pixels where inverse depth bends by more than this fraction become no "
    "points; 0: any may.", lower_bound=0,
)  # fmt: skip
MAX_POINTS = flags.DEFINE_integer(
    "max_points", 500_000, "Points that are gathered from all frames, at most.", lower_bound=1
)
POINT_SIZE = flags.DEFINE_float(
    "point_size", 1.0, "Times the size that covers a pixel of the video.", lower_bound=0.05
)
START = flags.DEFINE_integer("start", 0, "First frame that is shown, from 0.", lower_bound=0)
END = flags.DEFINE_integer(
    "end", None, "First frame that is no longer shown; default: all to the last.", lower_bound=1
)
STRIDE = flags.DEFINE_integer("stride", 1, "Show every n-th frame only.", lower_bound=1)

# The viewer in the browser.
HOST = flags.DEFINE_string(
    "host", live.HOST, "Address of this computer that serves the viewer; only 0.0.0.0 lets others "
    "see it.",
)  # fmt: skip
PORT = flags.DEFINE_integer(
    "port", live.PORT, "Port of the viewer; the next free one if it is taken.", 1, 65535
)
BROWSER = flags.DEFINE_bool("browser", True, "Open the viewer in the web browser.")

# The fly-through.
PATH = flags.DEFINE_enum(
    "path", _FLY.path, camera_path.PATHS, "Of --render's camera: to and fro around the scene, "
    "behind the recorded camera, or that camera itself.",
)  # fmt: skip
WIDTH = flags.DEFINE_integer("width", _FLY.width, "Of the video, pixels.", lower_bound=16)
HEIGHT = flags.DEFINE_integer("height", _FLY.height, "Of the video, pixels.", lower_bound=16)
FPS = flags.DEFINE_integer("fps", round(_FLY.fps), "Frames per second of the video.", 1, 120)
SECONDS = flags.DEFINE_float(
    "seconds", None, "Length of the video; default: as many whole passes through the clip as last "
    f"{camera_path.SHORTEST:.0f} seconds, so that it can be repeated without a jump.",
    lower_bound=0.01,
)  # fmt: skip
SPEED = flags.DEFINE_float(
    "speed", _FLY.speed, "Times the speed that the clip was taken at.", lower_bound=0.01
)
BACKGROUND = flags.DEFINE_enum(
    "background", _FLY.background, list(fly_through.BACKGROUNDS), "Of the video."
)
CAMERAS = flags.DEFINE_bool("cameras", _FLY.cameras, "Draw the recorded camera and its way.")

# Flags that change nothing elsewhere: what they belong to, and when that is made.
_OWN = {
    "the live viewer": (HOST, PORT, BROWSER),
    "--render": (PATH, WIDTH, HEIGHT, FPS, SECONDS, SPEED, BACKGROUND, CAMERAS),
}


def main(argv: Sequence[str]) -> None:
    """Shows, saves or renders the result."""
    if len(argv) != 2:
        raise UserError(
            "Name the result to look at, the folder that was given as --output of the "
            "reconstruction: python -m experiments.view outputs/my."
        )
    _check_flags()
    folder = Path(argv[1])
    scene = layers.part(scene_folder.load_scene(folder), START.value, END.value, STRIDE.value)
    rules = pointcloud.PointFilter(edge=EDGE.value, max_points=MAX_POINTS.value)
    look = layers.Look(MIN_CONFIDENCE.value, MOTION.value, GATHER.value)
    name = folder.resolve().name
    if SAVE.value:
        path = Path(SAVE.value)
        start = static_page.Start(look, COLOUR.value, POINT_SIZE.value)
        size = static_page.write(path, scene, rules, start, name)
        print(f"Written: {path}, {size / 1e6:.1f} MB; it opens offline in any browser.")
    shown = layers.Layers(scene, rules) if RENDER.value or not SAVE.value else None
    if RENDER.value:
        _render(Path(RENDER.value), shown, look)
    if not (SAVE.value or RENDER.value):
        _serve(shown, look, name)


def _render(path: Path, shown: layers.Layers, look: layers.Look) -> None:
    options = fly_through.Options(
        path=PATH.value, width=WIDTH.value, height=HEIGHT.value, fps=FPS.value,
        seconds=SECONDS.value, speed=SPEED.value, point_size=POINT_SIZE.value,
        background=BACKGROUND.value, cameras=CAMERAS.value,
    )  # fmt: skip

    def progress(pictures, count):
        return tqdm(pictures, total=count, desc="pictures", leave=False)

    count = fly_through.write(path, shown, look, COLOUR.value, options, progress)
    print(f"Written: {path}, {count} pictures, {count / FPS.value:.1f} s.")


def _serve(shown: layers.Layers, look: layers.Look, name: str) -> None:
    viewer = live.LiveViewer(
        shown, look, COLOUR.value, POINT_SIZE.value, host=HOST.value, port=PORT.value, name=name
    )
    print(f"Look at: {viewer.url} (Ctrl-C ends it)", flush=True)
    if BROWSER.value:
        webbrowser.open(viewer.url)
    try:
        viewer.run()
    finally:
        viewer.stop()


def _check_flags() -> None:
    """Raises UserError for flags that would change nothing, and for files that cannot be meant."""
    for flag, suffix in ((SAVE, (".html", ".htm")), (RENDER, (".mp4",))):
        if flag.value is not None and Path(flag.value).suffix.lower() not in suffix:
            raise UserError(
                f"--{flag.name}={flag.value}: name a file that ends in {suffix[0]}, "
                f"--{flag.name}=scene{suffix[0]}."
            )
        if flag.value is not None and Path(flag.value).is_dir():
            raise UserError(f"--{flag.name}={flag.value} is a folder; name a file in it.")
    made = {"--render"} if RENDER.value else set() if SAVE.value else {"the live viewer"}
    for owner, owned in _OWN.items():
        for flag in owned:
            if owner not in made and flag.value != flag.default:
                raise UserError(f"--{flag.name} belongs to {owner}; leave it out.")


if __name__ == "__main__":
    cli.run(main, arguments=1)
