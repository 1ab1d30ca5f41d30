"""Renders a long video of the sample's room, and the exact truth beside it.

    python -m data.procedural.make_long --output=outputs/long [--frames=1000 --width=128]

The camera wanders in front of the laid table on slow waves that never repeat, turning towards it,
with a hand's tremor; a ball rolls to and fro. Any length: what benchmarks of long videos run on.
`render_long(number=1..)` films drawn places the same way: a table-top, a room, outdoors, in turn.
Writes `long_walk.mp4` and `long_walk.truth.npz` (layout of `make_sample`). About 0.1 s a frame.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from align3r_jax.structs import Array
from data.procedural import cameras, clip, layout, make_sample, motion, scene, sensor, textures

RATE = 12
NAME = "long_walk"
_WAVES = (0.35, 0.83, 6.1)  # rad/s: two walks, one tremor
_SHIFT = ((0.55, 0.08, 0.25), (0.15, 0.05, 0.10), (0.003, 0.003, 0.003))  # metres, camera axes
_TURN = ((0.03, -0.28, 0.0), (0.02, -0.06, 0.02), (0.002, 0.002, 0.002))  # radians
_PHASE = (  # shift, then turn: the turn about the vertical follows the shift to the side
    ((0.0, 1.1, 0.7), (0.4, 2.0, 3.1), (0.3, 4.0, 5.0)),
    ((2.2, 0.0, 0.0), (1.0, 0.4, 2.7), (1.3, 2.4, 0.2)),
)
_REACH = 1.6  # metres from the camera to what it looks at, for which _SHIFT is made
_PLACES = ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0))  # shares of table-tops and outdoors of drawn places
_SEED = 7_000_003


def long_world() -> scene.Scene:
    """The sample's room without the person; the camera and the ball never come to rest."""
    world = make_sample.sample_world()
    camera = dataclasses.replace(world.camera, position=jnp.array([-0.1, -1.45, 1.30]))
    ball = layout.MOVERS.start
    at_rest = motion.at_rest(len(world.kind))
    rolling = dataclasses.replace(
        at_rest,
        moving=at_rest.moving.at[ball].set(True),
        sway=at_rest.sway.at[ball].set(jnp.array([0.45, 0.04, 0.0])),
        sway_rate=at_rest.sway_rate.at[ball].set(0.9),
        sway_phase=at_rest.sway_phase.at[ball].set(1.57),
    )
    walker = jnp.arange(layout.WALKER.start, layout.WALKER.stop)
    return dataclasses.replace(
        world,
        active=world.active.at[walker].set(False),
        motion=rolling,
        camera=_wandering(camera, 1.0, 0.0),
    )


def drawn_world(number: int, times: np.ndarray) -> scene.Scene:
    """Another place, drawn from its number >= 1, in which the camera wanders; things move."""
    table_top, outdoor = _PLACES[(number - 1) % len(_PLACES)]

    def wander(world: scene.Scene) -> scene.Scene:
        reach = jnp.linalg.norm(world.camera.target - world.camera.position) / _REACH
        path = _wandering(world.camera, jnp.clip(reach, min=0.3, max=3.0), 1.7 * number)
        return dataclasses.replace(world, camera=path)

    options = scene.SceneOptions(table_top=table_top, outdoor=outdoor, moving=1.0)
    key = jax.random.fold_in(jax.random.key(_SEED), number)
    return clip.find_scene(key, times, options, dynamic=(0.01, 0.3), turn=(0.0, 1e9), change=wander)


def _wandering(path: cameras.CameraPath, reach: Array, phase: float) -> cameras.CameraPath:
    """The path's place and lens, moved by the waves; reach: factor on distances."""
    waves = {
        "velocity": (0.0, 0.0, 0.0),
        "sway": (0.0, 0.0, 0.0),
        "target_velocity": (0.0, 0.0, 0.0),
        "roll_rate": 0.0,
        "jitter_rate": _WAVES,
        "jitter_shift": reach * jnp.asarray(_SHIFT),
        "jitter_turn": _TURN,
        "jitter_phase": jnp.asarray(_PHASE) + phase,
    }
    return dataclasses.replace(
        path, **{name: jnp.asarray(value, jnp.float32) for name, value in waves.items()}
    )


def render_long(
    frames: int, height: int = 96, width: int = 128, supersample: int = 1, number: int = 0
) -> clip.ProceduralClip:
    """Renders the first `frames` frames. number: of the place, 0 for the laid table."""
    times = np.arange(frames) / RATE
    return clip.render_clip(
        drawn_world(number, times) if number else long_world(),
        textures.make_bank(textures.EVALUATION_SEED),
        times,
        height,
        width,
        supersample=supersample,
        camera=sensor.SensorOptions(exposure=0.02, balance=0.0, noise=0.006, vignetting=0.15),
        seed=make_sample.SEED + number,
    )


def main(_: list[str]) -> None:
    folder = Path(flags.FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    rendered = render_long(flags.FLAGS.frames, flags.FLAGS.height, flags.FLAGS.width, 2)
    make_sample.write_video(folder / f"{NAME}.mp4", rendered.images, RATE)
    make_sample.write_truth(folder / f"{NAME}.truth.npz", rendered)


if __name__ == "__main__":
    flags.DEFINE_string("output", "outputs/long", "Folder that receives the two files.")
    flags.DEFINE_integer("frames", 1000, "How many frames.", lower_bound=2)
    flags.DEFINE_integer("height", 96, "Pixels, even.", lower_bound=32)
    flags.DEFINE_integer("width", 128, "Pixels, even.", lower_bound=32)
    app.run(main)
