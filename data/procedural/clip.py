"""Rendered videos with everything that is true of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.structs import Frames, OpticalFlow, WorkingSize
from data.procedural import pairs, render, scene, sensor, textures

_PROBE = 24  # long side of the depth maps on which scenes are judged


@struct.dataclass
class ProceduralClip:
    """T frames (NumPy). Pixel centres at integers, principal point (W/2, H/2).

    images: (T, H, W, 3) uint8. depth: (T, H, W) float32 metres along z. world_from_cam: (T, 4, 4)
    float32, the world is camera 0. intrinsics: (T, 3, 3) pixels. instance: (T, H, W) int32.
    dynamic_mask: (T, H, W) bool, what moves by itself. times: (T,) float64 seconds.
    forward_flow, forward_visible: (T-1, H, W, 2), (T-1, H, W) from frame t to t+1;
    backward_flow, backward_visible: from frame t+1 to t. source: the scene, for `flow_between`.
    """

    images: np.ndarray
    depth: np.ndarray
    world_from_cam: np.ndarray
    intrinsics: np.ndarray
    instance: np.ndarray
    dynamic_mask: np.ndarray
    times: np.ndarray
    forward_flow: np.ndarray
    forward_visible: np.ndarray
    backward_flow: np.ndarray
    backward_visible: np.ndarray
    source: scene.Scene

    @property
    def num_frames(self) -> int:
        return self.images.shape[0]


def render_clip(
    world: scene.Scene,
    bank: textures.TextureBank,
    times: np.ndarray,
    height: int,
    width: int,
    *,
    supersample: int = 1,
    camera: sensor.SensorOptions = sensor.SensorOptions(),
    seed: int = 0,
    shadows: bool = True,
) -> ProceduralClip:
    """Renders the world at `times` (T,) seconds.

    supersample: s * s colour samples per pixel, spread over the open shutter as well, so that
    motion blur is exact; truth is that of the middle of the shutter. seed: of the sensor noise.
    Exposure follows the brightness of the frame with a lag, as cameras do.
    """
    times = np.asarray(times, np.float64)
    keys = jax.random.split(jax.random.key(seed), len(times) + 1)
    share = float(jax.random.uniform(keys[-1], minval=0.5)) * camera.shutter
    render_one = functools.partial(
        _frame, world, bank, size=(height, width), supersample=supersample, shadows=shadows
    )
    views, images, dynamic, gain = [], [], [], None
    for time, key in zip(times, keys):
        seen, light, moving = render_one(jnp.float32(time), jnp.float32(share))
        wanted = sensor.auto_gain(light)
        gain = wanted if gain is None else 0.7 * gain + 0.3 * wanted
        images.append(np.asarray(_develop(key, light, gain, camera)))
        views.append(jax.device_get(seen))
        dynamic.append(np.asarray(moving))
    poses = np.stack([seen.world_from_cam for seen in views]).astype(np.float64)
    intrinsics = np.zeros((len(times), 3, 3), np.float32)
    for k, seen in enumerate(views):
        focal = float(seen.focal)
        intrinsics[k] = [[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]
    steps = [_flow(world, a, b) for a, b in zip(views[:-1], views[1:])]
    returns = [_flow(world, b, a) for a, b in zip(views[:-1], views[1:])]
    return ProceduralClip(
        images=np.stack(images),
        depth=np.stack([seen.depth for seen in views]),
        world_from_cam=(_inverse(poses[0]) @ poses).astype(np.float32),
        intrinsics=intrinsics,
        instance=np.stack([seen.index for seen in views]),
        dynamic_mask=np.stack(dynamic),
        times=times,
        forward_flow=_stack([flow for flow, _ in steps], (height, width, 2), np.float32),
        forward_visible=_stack([visible for _, visible in steps], (height, width), bool),
        backward_flow=_stack([flow for flow, _ in returns], (height, width, 2), np.float32),
        backward_visible=_stack([visible for _, visible in returns], (height, width), bool),
        source=world,
    )


def flow_between(clip: ProceduralClip, pair_list: np.ndarray) -> OpticalFlow:
    """Exact flow of any directed pairs (D, 2) of frames; weight 1 where the point stays visible."""
    pair_list = np.asarray(pair_list, np.int32)
    size = clip.depth.shape[1:]
    views = {
        int(k): _view(clip.source, jnp.float32(clip.times[k]), size) for k in set(pair_list.flat)
    }
    fields = [_flow(clip.source, views[int(i)], views[int(j)]) for i, j in pair_list]
    return OpticalFlow(
        pairs=pair_list,
        flow=_stack([flow for flow, _ in fields], (*size, 2), np.float32),
        weight=_stack([visible for _, visible in fields], size, np.float32),
        name="exact",
    )


def frames_of(clip: ProceduralClip) -> Frames:
    """The clip as the library's input."""
    size = tuple(clip.images.shape[1:3])
    return Frames(
        images=clip.images,
        times=clip.times,
        size=WorkingSize(original=size, resized=size, crop=(0, 0), working=size),
        names=tuple(f"frame_{k:04d}" for k in range(clip.num_frames)),
    ).check()


def find_scene(
    key: jax.Array,
    times: np.ndarray,
    options: scene.SceneOptions,
    *,
    aspect: float = 0.75,
    dynamic: tuple[float, float] = (0.0, 0.6),
    travel: tuple[float, float] = (0.0, 1e9),
    turn: tuple[float, float] = (0.0, 3.2),
    attempts: int = 200,
    change: Callable[[scene.Scene], scene.Scene] | None = None,
) -> scene.Scene:
    """Returns the first scene drawn from the key whose clip is acceptable at all `times`.

    change: applied to what is drawn before it is judged, such as another camera path.
    aspect: H / W. Bounds (low, high): dynamic, the mean share of moving pixels; travel, the path
    length over the median depth; turn, the summed rotation in radians. Raises RuntimeError after
    `attempts` draws.
    """
    size = (max(round(_PROBE * aspect), 4), _PROBE)
    for attempt in range(attempts):
        candidate = _draw(jax.random.fold_in(key, attempt), options)
        if change is not None:
            candidate = change(candidate)
        seen, moving = _probe(candidate, jnp.asarray(times, jnp.float32), size)
        seen = jax.device_get(seen)
        measured = {
            "dynamic": float(np.asarray(moving).mean()),
            "travel": float(_path_length(seen.world_from_cam) / np.median(seen.depth)),
            "turn": float(_turn(seen.world_from_cam)),
        }
        bounds = {"dynamic": dynamic, "travel": travel, "turn": turn}
        fits = all(low <= measured[name] <= high for name, (low, high) in bounds.items())
        neighbours = all(
            bool(pairs.acceptable(first, second))
            for first, second in zip(seen.depth[:-1], seen.depth[1:])
        )
        if fits and neighbours:
            return candidate
    raise RuntimeError(f"No scene within the bounds among {attempts} draws: {options}")


@functools.partial(jax.jit, static_argnames="options")
def _draw(key, options):
    return scene.sample_scene(key, options)


@functools.partial(jax.jit, static_argnames="size")
def _probe(world, times, size):
    def one(time):
        seen = render.view(world, time, *size)
        return seen, render.dynamic_mask(world, seen)

    return jax.lax.map(one, times)


@functools.partial(jax.jit, static_argnames="size")
def _view(world, time, size):
    return render.view(world, time, *size)


_flow = jax.jit(render.flow)


@functools.partial(jax.jit, static_argnames=("size", "supersample", "shadows"))
def _frame(world, bank, time, share, *, size, supersample, shadows):
    """Truth at `time`, and light averaged over the pixel and the open shutter."""
    seen = render.view(world, time, *size)
    if supersample == 1:
        light = render.shade_view(world, seen, bank, shadows=shadows)
        speed = render.velocity(world, seen, time, sensor.FRAME_INTERVAL)
        light = sensor.motion_blur(light, speed, share)
        return seen, light, render.dynamic_mask(world, seen)
    count = supersample**2
    cell = jnp.arange(count)
    x = (cell % supersample + 0.5) / supersample - 0.5
    y = (cell // supersample + 0.5) / supersample - 0.5
    # Consecutive moments go to cells far apart, so that blur and edges are both even.
    moment = ((cell * (2 * supersample + 1) + 0.5 * supersample) % count + 0.5) / count - 0.5
    moments = time + moment * share * sensor.FRAME_INTERVAL

    def add(total, sample):
        dx, dy, at = sample
        light = render.colours(
            world, at, bank, *size, offset=(dx, dy), level_bias=-0.7 * np.log2(supersample),
            shadows=shadows, trilinear=True,
        )  # fmt: skip
        return total + light, None

    total, _ = jax.lax.scan(add, jnp.zeros((*size, 3)), (x, y, moments))
    return seen, total / count, render.dynamic_mask(world, seen)


@functools.partial(jax.jit, static_argnames="camera")
def _develop(key, light, gain, camera):
    return sensor.to_uint8(sensor.expose(key, light, camera, gain))


def _inverse(pose: np.ndarray) -> np.ndarray:
    """Of a rigid pose (4, 4), without the rounding of a general inverse."""
    result = np.eye(4)
    result[:3, :3] = pose[:3, :3].T
    result[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return result


def _path_length(poses: np.ndarray) -> float:
    return np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum()


def _turn(poses: np.ndarray) -> float:
    relative = np.einsum("tji,tjk->tik", poses[:-1, :3, :3], poses[1:, :3, :3])
    cosine = (np.trace(relative, axis1=1, axis2=2) - 1) / 2
    return np.arccos(np.clip(cosine, -1, 1)).sum()


def _stack(fields: list[Any], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """np.stack that also takes the empty list of a single-frame clip."""
    if not fields:
        return np.zeros((0, *shape), dtype)
    return np.stack([np.asarray(field) for field in fields]).astype(dtype)
