"""What the doctor tries on this machine: devices, memory, compile cache, a computation, a video."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax import plan
from align3r_jax.errors import UserError
from align3r_jax.io import preview, video
from experiments.doctor_packages import BROKEN, NOTE, OK, ROOT, Finding

SAMPLE = ROOT / "data" / "samples" / "room_walk.mp4"
_SIDE = 256  # of the matrices that are multiplied
_FEW_BYTES = 2_500_000_000  # what 50 small frames take (docs/long_videos.md), about
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
_TRACES = {  # of an accelerator: device file or program -> what JAX needs to use it
    "nvidia": (("/dev/nvidiactl", "/proc/driver/nvidia/version"), "nvidia-smi", "cuda12"),
    "tpu": (("/dev/accel0", "/dev/vfio/0"), None, "tpu"),
}


def devices() -> list[Finding]:
    """Returns each kind of device with count and memory, and accelerators that JAX does not see."""
    try:
        found = jax.devices()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        return [
            Finding("Devices", "jax", BROKEN, f"JAX finds no device: {reason}", _platform_advice())
        ]
    rows = []
    for kind in dict.fromkeys(device.device_kind for device in found):
        same = [device for device in found if device.device_kind == kind]
        memory = (same[0].memory_stats() or {}).get("bytes_limit")
        text = f"{len(same)} x {kind} ({same[0].platform})"
        text += f", {plan.say(memory)} each" if memory else ""
        facts = {"platform": same[0].platform, "kind": kind, "count": len(same), "memory": memory}
        rows.append(Finding("Devices", same[0].platform, OK, text, "", facts))
    version = metadata.version("jax")
    for plugin in _PLUGINS[:2]:
        if (have := _version(plugin)) not in (None, version):
            advice = f'python -m pip install "jax[{plugin.split("-")[1]}]=={version}"'
            text = f"{have}, but jax is {version}: they must be the same"
            rows.append(Finding("Devices", plugin, NOTE, text, advice))
    if all(device.platform == "cpu" for device in found):
        rows += _unseen(version)
    return rows


def host() -> list[Finding]:
    """Returns cores, memory and disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = plan.free_memory()
    disk = shutil.disk_usage(Path.cwd()).free
    little = free < _FEW_BYTES
    return [
        Finding("Machine", "cores", OK, f"{cores}", "", {"count": cores}),
        Finding(
            "Machine", "memory", NOTE if little else OK, f"{plan.say(free)} free",
            "50 small frames take 2.3 GB: end other programs, or give fewer frames "
            "(--max_frames) and a smaller --size." if little else "", {"free": free},
        ),
        Finding("Machine", "disk", OK, f"{plan.say(disk)} free here", "", {"free": disk}),
    ]  # fmt: skip


def compile_cache() -> Finding:
    """Returns where compiled programs are kept, how many and how large."""
    name = jax.config.jax_compilation_cache_dir
    if not name:
        advice = "Unset JAX_COMPILATION_CACHE_DIR: every run compiles anew without it."
        return Finding("Machine", "compile cache", NOTE, "none", advice)
    folder = Path(name).expanduser()
    files = [path for path in folder.glob("*") if path.is_file()] if folder.is_dir() else []
    size = sum(path.stat().st_size for path in files)
    facts = {"folder": str(folder), "files": len(files), "bytes": size}
    text = f"{folder}: {len(files)} files, {plan.say(size)}"
    if not _writable(folder):
        advice = "It cannot be written; name another one in JAX_COMPILATION_CACHE_DIR."
        return Finding("Machine", "compile cache", NOTE, text, advice, facts)
    return Finding("Machine", "compile cache", OK, text, "", facts)


def computations() -> list[Finding]:
    """Returns, for the first device of each kind, whether a compiled computation is right."""
    try:
        first = {device.device_kind: device for device in [*jax.devices(), *jax.devices("cpu")]}
    except RuntimeError:
        return []  # `devices` has said why
    return [_computation(device) for device in first.values()]


def codecs(sample: Path = SAMPLE) -> list[Finding]:
    """Returns whether the sample video can be decoded, and H.264 written and read back."""
    rows = []
    if sample.exists():
        rows.append(_decoded("H.264 in", sample))
    else:
        text = f"{sample.name} is not here, so no video was tried"
        rows.append(
            Finding("Video", "H.264 in", NOTE, text, "python -m data.procedural.make_sample")
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.mp4"
        pictures = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8)
        try:
            preview.write_mp4(path, pictures, 10.0)
            rows.append(_decoded("H.264 out", path))
        except (OSError, ValueError) as error:
            rows.append(_no_codec("H.264 out", error))
    return rows


def _computation(device: Any) -> Finding:
    left = np.linspace(-1.0, 1.0, _SIDE * _SIDE, dtype=np.float32).reshape(_SIDE, _SIDE)
    multiply = jax.jit(lambda x: jnp.matmul(x, x.T, precision="highest"))
    kind = f"{device.platform}, {device.device_kind}"
    try:
        given = jax.device_put(left, device)
        times = []
        for _ in range(2):
            begin = time.perf_counter()
            result = np.asarray(multiply(given))
            times.append(time.perf_counter() - begin)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        return Finding("Devices", "computation", BROKEN, f"{kind}: {reason}", _platform_advice())
    error = float(np.abs(result - left @ left.T).max() / np.abs(result).max())
    right = error < 1e-4  # also NaN is not
    text = f"{kind}: {times[0]:.2f} s compiled, then {1e3 * times[1]:.1f} ms"
    facts = {
        "platform": device.platform,
        "kind": device.device_kind,
        "compile_s": times[0],
        "run_s": times[1],
        "relative_error": error if np.isfinite(error) else None,
    }
    if right:
        return Finding("Devices", "computation", OK, f"{text}, right", "", facts)
    advice = "Update the driver, or run with JAX_PLATFORMS=cpu."
    return Finding("Devices", "computation", BROKEN, f"{text}, WRONG by {error:.1g}", advice, facts)


def _decoded(name: str, path: Path) -> Finding:
    try:
        frames, _ = video.read_frames(path, max_frames=2, size=64, keep_originals=False)
    except (UserError, OSError) as error:
        return _no_codec(name, error)
    height, width = frames.size.original
    facts = {"width": width, "height": height}
    return Finding("Video", name, OK, f"{path.name}, {width}x{height}", "", facts)


def _no_codec(name: str, error: Exception) -> Finding:
    advice = "Install PyAV's own build: python -m pip install --force-reinstall av. Folders of "
    advice += "pictures need no codec."
    return Finding("Video", name, BROKEN, f"{error}", advice)


def _unseen(version: str) -> list[Finding]:
    """Accelerators that this machine seems to have and JAX does not use."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    rows = []
    for name, (files, program, extra) in _TRACES.items():
        if not any(Path(file).exists() for file in files) and not (
            program and shutil.which(program)
        ):
            continue
        advice = f'python -m pip install "jax[{extra}]=={version}"'
        if asked == "cpu":
            advice = "Unset JAX_PLATFORMS: it is cpu."
        text = f"traces of a {name} device, which JAX does not use"
        rows.append(Finding("Devices", name, NOTE, text, advice))
    return rows


def _platform_advice() -> str:
    asked = os.environ.get("JAX_PLATFORMS")
    if asked:
        return f"JAX_PLATFORMS is {asked}: unset it, or set it to cpu."
    return "Set JAX_PLATFORMS=cpu to run on the processor."


def _writable(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
