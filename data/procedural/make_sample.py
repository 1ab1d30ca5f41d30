"""Renders the sample video that ships, and the exact truth beside it.

    python -m data.procedural.make_sample [--output=data/samples]

A room with a laid table, seen from a hand-held camera that moves sideways, while a person walks by
behind the table and a ball rolls over it. Writes `room_walk.mp4` (H.264) and, in
`room_walk.truth.npz`, depth (T, H, W) float16 metres along z, world_from_cam (T, 4, 4) (the world
is camera 0), intrinsics (T, 3, 3) pixels, dynamic_mask (T, H, W) bool, times (T,) seconds.
About two minutes on two cores.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from data.procedural import cameras, clip, layout, motion, scene, sensor, textures
from data.procedural.shapes import BOX, CYLINDER, SPHERE

FRAMES, HEIGHT, WIDTH, RATE = 24, 240, 320, 12
SEED = 20
NAME = "room_walk"

# (kind, half sizes, centre above the table or world, yaw, tile, tint); table top at 0.72 m.
_ON_TABLE = [
    (BOX, (0.13, 0.09, 0.025), (-0.42, 0.10), 0.3, 49, (1.0, 0.95, 0.9)),  # thick book
    (BOX, (0.10, 0.075, 0.02), (-0.42, 0.10), 0.8, 55, (1.1, 1.0, 0.9)),  # on top of it
    (CYLINDER, (0.045, 0.045, 0.06), (-0.41, 0.11), 0.0, 87, (1.1, 1.1, 1.1)),  # cup on the books
    (BOX, (0.11, 0.15, 0.003), (0.02, -0.24), 0.25, 9, (1.25, 1.25, 1.2)),  # sheet of print
    (BOX, (0.22, 0.012, 0.15), (0.30, 0.28), -0.25, 91, (0.95, 0.95, 1.0)),  # screen
    (BOX, (0.09, 0.07, 0.012), (0.30, 0.27), -0.25, 82, (1.0, 1.0, 1.0)),  # its foot
    (CYLINDER, (0.055, 0.055, 0.11), (-0.12, 0.22), 0.0, 34, (1.0, 0.8, 0.6)),  # tin
    (SPHERE, (0.06, 0.06, 0.06), (-0.62, -0.22), 0.0, 65, (1.2, 1.0, 0.7)),  # fruit
    (SPHERE, (0.055, 0.055, 0.055), (-0.52, -0.28), 0.0, 56, (1.3, 1.1, 0.5)),
    (BOX, (0.08, 0.05, 0.10), (0.60, 0.05), 0.5, 44, (1.0, 1.0, 1.0)),  # carton
    (BOX, (0.05, 0.05, 0.05), (0.60, 0.05), 0.2, 11, (1.0, 0.9, 0.8)),  # on the carton
]
_STACKED_ON = {1: 0, 2: 1, 4: 5, 10: 9}
_ABOUT = [
    (BOX, (0.35, 0.02, 0.25), (-1.35, 2.28, 1.55), 0.0, 24, (1.1, 1.05, 1.0)),  # pictures
    (BOX, (0.25, 0.02, 0.33), (-0.35, 2.28, 1.50), 0.0, 7, (1.1, 1.1, 1.1)),
    (BOX, (0.30, 0.02, 0.22), (1.05, 2.28, 1.60), 0.0, 6, (1.1, 1.1, 1.1)),
    (BOX, (0.45, 0.22, 0.40), (1.70, 1.95, 0.40), 0.0, 63, (1.15, 1.05, 0.95)),  # chest
    (CYLINDER, (0.22, 0.22, 0.28), (-1.75, 1.45, 0.28), 0.0, 41, (1.1, 1.05, 1.0)),  # stool
]
_POLES = [
    (CYLINDER, (0.012, 0.012, 0.75), (-2.05, 1.85, 0.75), 0.0, 15, (1.0, 1.0, 1.0)),  # lamp
    (CYLINDER, (0.006, 0.006, 0.09), (0.16, -0.06, 0.735), 1.2, 68, (1.2, 0.5, 0.4)),  # pencil
]
_WALKER_LOOK = [(70, (0.9, 1.0, 1.3)), (75, (1.15, 1.05, 0.95)), (37, (0.8, 0.85, 1.1)),
                (37, (0.8, 0.85, 1.1)), (70, (0.9, 1.0, 1.3)), (70, (0.9, 1.0, 1.3))]  # fmt: skip
_FACES = [  # -x, +x, -y, +y, floor, ceiling: tile, tint, tiles per metre
    (32, (1.15, 1.1, 1.0), 0.8), (32, (1.15, 1.1, 1.0), 0.8), (29, (1.1, 1.1, 1.1), 0.5),
    (32, (1.25, 1.15, 1.05), 0.8), (16, (1.15, 0.95, 0.75), 0.7), (51, (1.1, 1.1, 1.1), 0.5),
]  # fmt: skip


def sample_world() -> scene.Scene:
    """The scene of the sample video, by hand."""
    place = layout.Place(
        half=jnp.array([2.6, 2.3, 1.3]),
        centre=jnp.array([0.0, 0.0, 1.3]),
        radius=jnp.float32(2.0),
        table_half=jnp.array([0.80, 0.42, 0.02]),
        table_position=jnp.array([0.0, 0.05, 0.70]),
        table_turn=jnp.eye(3),
        outdoor=jnp.bool_(False),
        table_top=jnp.bool_(True),
        has_table=jnp.bool_(True),
    )
    table = jax.jit(layout.table)(place)
    things = _things()
    ball = (SPHERE, (0.085,) * 3, (0.62, -0.20, 0.72 + 0.085), 0.0, 31, (1.2, 0.9, 0.7))
    figure_position, figure_rotation, figure_scale, figure_motion = jax.jit(motion.walker)(
        jnp.array([-1.15, 1.15, 0.0]), jnp.float32(0.05), jnp.float32(1.72), jnp.float32(0.62)
    )
    count = layout.COUNT
    kind, active = np.zeros(count, np.int32), np.zeros(count, bool)
    scale, position = np.ones((count, 3), np.float32), np.zeros((count, 3), np.float32)
    rotation = np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
    tile, tint = np.zeros(count + 6, np.int32), np.ones((count + 6, 3), np.float32)
    density = np.ones(count + 6, np.float32)

    slots = [*range(layout.CLUTTER.start, layout.CLUTTER.stop)]
    slots += [*range(layout.THIN.start, layout.THIN.stop)]
    placed = list(zip(slots, things)) + [(layout.MOVERS.start, ball)]
    for slot, (shape, half, centre, yaw, number, colour) in placed:
        kind[slot], active[slot] = shape, True
        scale[slot], position[slot] = half, centre
        rotation[slot, :2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        tile[slot], tint[slot] = number, colour
        density[slot] = 0.45 / np.median(half)
    kind[layout.TABLE], active[layout.TABLE] = table.kind, True
    scale[layout.TABLE], position[layout.TABLE] = table.scale, table.position
    tile[layout.TABLE], tint[layout.TABLE] = 60, (1.2, 0.95, 0.7)
    density[layout.TABLE] = 1.6
    kind[layout.WALKER], active[layout.WALKER] = motion.WALKER_KINDS, True
    scale[layout.WALKER], position[layout.WALKER] = figure_scale, figure_position
    rotation[layout.WALKER] = figure_rotation
    for k, (number, colour) in enumerate(_WALKER_LOOK):
        slot = layout.WALKER.start + k
        tile[slot], tint[slot], density[slot] = number, colour, 3.0
    for k, (number, colour, tiles) in enumerate(_FACES):
        tile[count + k], tint[count + k], density[count + k] = number, colour, tiles

    rolling = motion.at_rest(layout.MOVERS.stop - layout.MOVERS.start)
    velocity = jnp.array([-0.42, 0.02, 0.0])
    rolling = dataclasses.replace(
        rolling,
        moving=rolling.moving.at[0].set(True),
        velocity=rolling.velocity.at[0].set(velocity),
        spin=rolling.spin.at[0].set(jnp.cross(jnp.array([0.0, 0.0, 1.0]), velocity) / 0.085),
    )
    motions = [motion.at_rest(layout.MOVERS.start), rolling, figure_motion]
    gloss = np.zeros(count + 6, np.float32)
    gloss[[layout.MOVERS.start, 12, 13]] = 0.3
    sun = np.array([-0.35, -0.55, 1.0])
    return scene.Scene(
        kind=jnp.asarray(kind),
        scale=jnp.asarray(scale),
        position=jnp.asarray(position),
        rotation=jnp.asarray(rotation),
        active=jnp.asarray(active),
        motion=jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *motions),
        half=place.half,
        centre=place.centre,
        outdoor=place.outdoor,
        surfaces=scene.Surfaces(
            tile=jnp.asarray(tile),
            density=jnp.asarray(density),
            tint=jnp.asarray(tint),
            gloss=jnp.asarray(gloss),
            offset=jnp.asarray(np.random.default_rng(SEED).random((count + 6, 2)), jnp.float32),
            contrast=jnp.float32(1.0),
        ),
        light=scene.Light(
            direction=jnp.asarray(sun / np.linalg.norm(sun), jnp.float32),
            ambient=jnp.float32(0.55),
            lamp=jnp.float32(0.1),
        ),
        camera=_hand_held(),
    )


def _things() -> list[tuple]:
    """Clutter, then poles, with full positions; stacked things get the height of what carries."""

    def bottom(k):
        below = _STACKED_ON.get(k)
        return 0.72 if below is None else bottom(below) + 2 * _ON_TABLE[below][1][2]

    things = []
    for k, (shape, half, (x, y), yaw, number, colour) in enumerate(_ON_TABLE):
        things.append((shape, half, (x, y, bottom(k) + half[2]), yaw, number, colour))
    return things + _ABOUT + _POLES


def _hand_held() -> cameras.CameraPath:
    """Sideways by 0.85 m in two seconds at eye height, with a hand's tremor."""
    tremor = np.random.default_rng(SEED)
    fade = 1.0 / np.array([1.0, 2.0, 4.0])[:, None]
    values = {
        "position": (-0.45, -1.55, 1.30),
        "velocity": (0.45, 0.03, -0.05),
        "sway": (0.02, 0.03, 0.02),
        "sway_rate": 2.2,
        "sway_phase": 0.4,
        "target": (-0.06, 0.35, 0.72),
        "target_velocity": (0.08, 0.0, 0.02),
        "roll": 0.02,
        "roll_rate": -0.015,
        "focal_ratio": 0.82,
        "low": (-2.4, -2.1, 0.2),
        "high": (2.4, 2.1, 2.4),
        "jitter_rate": (6.1, 13.0, 29.0),
        "jitter_shift": tremor.normal(size=(3, 3)) * 0.003 * fade,
        "jitter_turn": tremor.normal(size=(3, 3)) * 0.003 * fade,
        "jitter_phase": tremor.uniform(0, 6.28, (2, 3, 3)),
    }
    return cameras.CameraPath(**{k: jnp.asarray(v, jnp.float32) for k, v in values.items()})


def render_sample(supersample: int = 4, frames: int = FRAMES) -> clip.ProceduralClip:
    """Renders the clip; fewer samples and frames for a quick look."""
    return clip.render_clip(
        sample_world(),
        textures.make_bank(textures.EVALUATION_SEED),
        np.arange(frames) / RATE,
        HEIGHT,
        WIDTH,
        supersample=supersample,
        camera=sensor.SensorOptions(exposure=0.02, balance=0.0, noise=0.006, vignetting=0.15),
        seed=SEED,
    )


def write_video(path: Path, images: np.ndarray, rate: int = RATE, quality: int = 12) -> None:
    """images (T, H, W, 3) uint8 as H.264 in MP4; quality is x264's CRF (lower is better)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(quality), "preset": "slow", "threads": "1"}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_truth(path: Path, rendered: clip.ProceduralClip) -> None:
    """The layout of the module's docstring."""
    np.savez_compressed(
        path,
        depth=rendered.depth.astype(np.float16),
        world_from_cam=rendered.world_from_cam,
        intrinsics=rendered.intrinsics,
        dynamic_mask=rendered.dynamic_mask,
        times=rendered.times,
    )


def main(_: list[str]) -> None:
    folder = Path(flags.FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    rendered = render_sample()
    write_video(folder / f"{NAME}.mp4", rendered.images)
    write_truth(folder / f"{NAME}.truth.npz", rendered)
    for path in sorted(folder.glob(f"{NAME}*")):
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    # Here, not at the top: tests import this module beside scripts that have an --output too.
    flags.DEFINE_string("output", "data/samples", "Folder that receives the two files.")
    app.run(main)
