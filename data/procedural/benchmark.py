"""The fixed accuracy benchmark: unseen moving scenes, hand-held cameras, unseen textures.

    for name, clip in benchmark.clips(): ...

Deterministic from the seeds below; change anything and raise VERSION, because published numbers
name it. Every clip has movers and an exactly known truth. One axis of difficulty per clip:

| name     | place     | what is hard                                                          |
|----------|-----------|-----------------------------------------------------------------------|
| desk     | table-top | nothing in particular: sideways camera, a few small movers            |
| desk_low | table-top | grazing view, strong hand tremor                                      |
| room     | room      | larger depth range, a person walks                                    |
| crowded  | room      | 12-35 % of the pixels move                                            |
| plain    | room      | weak texture and sensor noise                                         |
| street   | outdoors  | far background, exposure changes, wide depth range                    |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.structs import DepthPrior
from data.procedural import cameras, clip, motion, noise, scene, sensor, textures

VERSION = 2
FRAMES, HEIGHT, WIDTH, RATE = 16, 192, 256, 10  # frames per second
_SEED, _PRIOR_SEED = 8_000_009, 7


@dataclasses.dataclass(frozen=True)
class Case:
    """One clip of the benchmark: what is drawn, and which draws are kept (`clip.find_scene`)."""

    name: str
    scene: scene.SceneOptions
    sensor: sensor.SensorOptions = sensor.SensorOptions(shutter=0.4, exposure=0.02, noise=0.008)
    dynamic: tuple[float, float] = (0.02, 0.12)
    travel: tuple[float, float] = (0.15, 0.6)
    turn: tuple[float, float] = (0.1, 0.8)


def _camera(**changes) -> cameras.CameraOptions:
    usual = cameras.CameraOptions(
        standing=0.0, speed=(0.4, 1.0), turn=(0.15, 0.6), jitter=(0.3, 0.8), fov=(50.0, 72.0)
    )
    return dataclasses.replace(usual, **changes)


def _options(table_top: float, outdoor: float, **changes) -> scene.SceneOptions:
    usual = scene.SceneOptions(
        table_top=table_top, outdoor=outdoor, moving=1.0, walker=0.5, camera=_camera()
    )
    return dataclasses.replace(usual, **changes)


CASES = (
    Case("desk", _options(1.0, 0.0)),
    Case("desk_low", _options(1.0, 0.0, camera=_camera(jitter=(1.2, 2.0)))),
    Case("room", _options(0.0, 0.0, walker=1.0)),
    Case("crowded", _options(0.0, 0.0, walker=1.0), dynamic=(0.12, 0.35)),
    Case(
        "plain",
        _options(0.0, 0.0, texture=0.6),
        sensor.SensorOptions(shutter=0.4, exposure=0.02, noise=0.012),
    ),
    Case(
        "street",
        _options(0.0, 1.0),
        sensor.SensorOptions(shutter=0.4, exposure=0.06, noise=0.008),
        travel=(0.05, 0.6),
        turn=(0.05, 0.8),
    ),
)


def names() -> tuple[str, ...]:
    """The clips in order."""
    return tuple(case.name for case in CASES)


def render(
    name: str,
    *,
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    supersample: int = 3,
    bank: textures.TextureBank | None = None,
    camera: sensor.SensorOptions | None = None,
    still: bool = False,
) -> clip.ProceduralClip:
    """Returns one clip; the arguments shrink or clean it for quick checks (same scene).

    still: nothing but the camera moves; what moves otherwise stays where it is at first.
    """
    if name not in names():
        raise UserError(f"Unknown benchmark clip {name!r}: expected one of {', '.join(names())}.")
    number = names().index(name)
    case = CASES[number]
    key = jax.random.fold_in(jax.random.key(_SEED), number)
    full = np.arange(FRAMES) / RATE
    world = clip.find_scene(
        key,
        full,
        case.scene,
        aspect=HEIGHT / WIDTH,
        dynamic=case.dynamic,
        travel=case.travel,
        turn=case.turn,
    )
    if still:
        world = dataclasses.replace(world, motion=motion.at_rest(len(world.kind)))
    bank = textures.make_bank(textures.EVALUATION_SEED) if bank is None else bank
    return clip.render_clip(
        world,
        bank,
        full[:frames],
        height,
        width,
        supersample=supersample,
        camera=case.sensor if camera is None else camera,
        seed=_SEED + number,
    )


def clips(**changes) -> Iterator[tuple[str, clip.ProceduralClip]]:
    """Yields (name, clip) of the whole benchmark; `changes` as in `render`."""
    bank = textures.make_bank(textures.EVALUATION_SEED)
    for name in names():
        yield name, render(name, bank=bank, **changes)


def user_prior(rendered: clip.ProceduralClip, name: str) -> DepthPrior:
    """Returns what a user's monocular network might give of a clip: no focal, and every frame has
    errors of its own (`noise.noisy_prior`)."""
    key = jax.random.key(_PRIOR_SEED + names().index(name))
    depth = np.asarray(noise.noisy_prior(key, rendered.depth, rendered.instance))
    return DepthPrior(depth, depth, None, "files")
