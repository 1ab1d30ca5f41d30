"""Depth priors and optical flow of any number of clips, computed once and kept as files.

    python -m experiments.estimate_priors --input='clips/*' --output=priors --prior=depth_pro
    python -m experiments.reconstruct --video=clips/a.mp4 --output=out --prior=files:priors/a

Each clip is a video or a folder of images. `--layout=clip` (default) writes
OUTPUT/CLIP/F_pred_depth_NAME.npz, the other layouts put priors where training and evaluation look
for them (`io/prior_files.py`); flow goes to OUTPUT/CLIP/flow/A_B.npz. An interrupted run, killed or
not, goes on where it stopped; changed images, weights or settings are computed afresh. A clip that
fails is named, the others go on; the exit code is then 1. OUTPUT/manifest.json lists everything.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm

from align3r_jax import config as config_lib
from align3r_jax.errors import UserError
from align3r_jax.io import atomic, prior_files
from experiments import cli, prior_clips

INPUT = flags.DEFINE_multi_string(
    "input", None, "Videos and folders of images; globs match several; may be repeated.",
    required=True,
)  # fmt: skip
OUTPUT = flags.DEFINE_string("output", None, "Folder of results and records.", required=True)
PRIOR = flags.DEFINE_string("prior", "none", "Depth network, as of reconstruct; none: no depth.")
PRIOR_WEIGHTS = flags.DEFINE_string(
    "prior_weights", None, "Its file or folder; default: looked for by name."
)
FLOW = flags.DEFINE_enum("flow", "none", ["none", "dis", "raft", "sea_raft"], "Optical flow.")
FLOW_WEIGHTS = flags.DEFINE_string(
    "flow_weights", None, "Its file or folder; default: looked for by name."
)
FLOW_ITERATIONS = flags.DEFINE_integer("flow_iterations", 20, "Updates of raft and sea_raft.",
                                       lower_bound=1)  # fmt: skip
FLOW_OFFSETS = flags.DEFINE_list(
    "flow_offsets", ["1"], "Frames between the two of a pair; both directions are computed."
)
FLOW_SIZE = flags.DEFINE_integer("flow_size", 512, "Long side in pixels at which flow is computed.",
                                 lower_bound=32)  # fmt: skip
LAYOUT = flags.DEFINE_enum(
    "layout", "clip", ["clip", *prior_files.LAYOUTS], "Where priors go; see io/prior_files.py."
)
FOCAL = flags.DEFINE_float(
    "focal", None, "Focal of the images in pixels, if known.", lower_bound=1e-3
)
STRIDE = flags.DEFINE_integer("stride", 1, "Take every n-th frame.", lower_bound=1)
FPS = flags.DEFINE_float("fps", None, "Take only so many frames per second.", lower_bound=0.01)
MAX_FRAMES = flags.DEFINE_integer("max_frames", 0, "At most this many frames of a clip; 0: all.",
                                  lower_bound=0)  # fmt: skip
MAX_MEMORY = flags.DEFINE_float(
    "max_memory", None, "GiB that a batch may take on a device; default: the network's own, 2 "
    "(Depth Anything) or 4 (the others).", lower_bound=0.01,
)  # fmt: skip
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Network compute type.")

# What a clip may fail with: bad input, files, numbers, memory of the device.
_FAILURES = (UserError, OSError, ValueError, RuntimeError, MemoryError)


def main(argv: Sequence[str]) -> int:
    del argv
    if PRIOR.value == "none" and FLOW.value == "none":
        raise UserError("Nothing to compute: give --prior=NAME, --flow=NAME or both.")
    output = Path(OUTPUT.value)
    selection = {"stride": STRIDE.value, "fps": FPS.value, "max_frames": MAX_FRAMES.value or None}
    clips = prior_clips.find_clips(INPUT.value, output, selection)
    jobs: list[tuple[str, Callable[[], prior_clips.Job]]] = []
    if PRIOR.value != "none":
        jobs.append(("depth", _depth_job))
    if FLOW.value != "none":
        jobs.append(("flow", _flow_job))

    entries: dict[str, dict[str, Any]] = {
        clip.name: {"source": str(clip.source), "record": str(clip.record_path)} for clip in clips
    }
    failed = 0
    for stage, make_job in jobs:
        job = make_job()  # one network at a time is in memory
        for clip in tqdm(clips, desc=stage, unit="clip"):
            started = time.perf_counter()
            try:
                done = prior_clips.process(clip, job)
                result: dict[str, Any] = {"frames": done.total, "computed": done.computed}
            except _FAILURES as error:
                failed += 1
                result = {"error": str(error) or type(error).__name__}
                tqdm.write(f"{clip.source}: {stage} failed: {result['error']}")
            result["seconds"] = round(time.perf_counter() - started, 2)
            entries[clip.name][stage] = result
        del job
    manifest = {"settings": _settings(), "clips": entries}
    atomic.replace_file(output / "manifest.json", json.dumps(manifest, indent=1).encode())
    computed = sum(
        e.get(stage, {}).get("computed", 0) for e in entries.values() for stage, _ in jobs
    )
    print(f"{len(clips)} clips, {computed} files computed, {failed} failures; see {output}.")
    return 1 if failed else 0


def _settings() -> dict[str, Any]:
    named = (PRIOR, PRIOR_WEIGHTS, FLOW, FLOW_WEIGHTS, FLOW_ITERATIONS, FLOW_OFFSETS, FLOW_SIZE,
             LAYOUT, FOCAL, STRIDE, FPS, MAX_FRAMES, DTYPE)  # fmt: skip
    return {flag.name: flag.value for flag in named}


def _depth_job() -> prior_clips.Job:
    from align3r_jax.priors import sources
    from align3r_jax.weights import published

    config = config_lib.ReconstructConfig(
        prior=PRIOR.value, prior_weights=PRIOR_WEIGHTS.value, compute_dtype=DTYPE.value
    )
    network = sources.open_prior(config, **_resources())
    if network is None:
        raise UserError(
            f"--prior={PRIOR.value} is nothing to compute here; give one of "
            f"{', '.join(published.names_of(*sources.DEPTH_KINDS))}, or auto with --prior_weights."
        )
    if notice := published.licence_notice(network.name):
        print(notice)
    key = f"{network.name} {network.checksum}"
    at_once = prior_clips.FRAMES_AT_ONCE * jax.local_device_count()
    loaded = network.load()

    def model(focal: np.ndarray | None) -> sources.DepthModel:
        return network.open(loaded, focal=focal)

    name = prior_files.name_of(loaded.kind, getattr(loaded.config, "max_depth", None) is not None)
    return prior_clips.DepthJob(model, name, key, LAYOUT.value, FOCAL.value, at_once)


def _flow_job() -> prior_clips.Job:
    from align3r_jax.priors import sources

    config = config_lib.FlowConfig(
        source=FLOW.value, weights=FLOW_WEIGHTS.value, iterations=FLOW_ITERATIONS.value
    )
    try:
        offsets = tuple(sorted({int(offset) for offset in FLOW_OFFSETS.value}))
    except ValueError:
        offsets = ()
    if not offsets or offsets[0] < 1:
        raise UserError(
            f"--flow_offsets={','.join(FLOW_OFFSETS.value)}: expected numbers of frames from 1, "
            "such as 1,3,5."
        )
    network = sources.open_flow(config)
    key = f"{FLOW.value} {network.checksum if network else ''} {config.iterations} {DTYPE.value}"
    return prior_clips.FlowJob(
        lambda frames: sources.flow_source(
            config,
            frames,
            network,
            lambda _: None,
            compute_dtype=DTYPE.value,
            **_resources(),
        ),
        key,
        offsets,
        FLOW_SIZE.value,
    )


def _resources() -> dict[str, Any]:
    """Memory of a batch if it was given; frames dealt out to all devices if there are several."""
    resources: dict[str, Any] = {}
    if MAX_MEMORY.value is not None:
        resources["max_memory"] = int(MAX_MEMORY.value * 2**30)
    devices = jax.local_devices()
    if len(devices) > 1:
        mesh = jax.make_mesh(
            (len(devices),), ("frames",), axis_types=(AxisType.Auto,), devices=devices
        )
        resources["sharding"] = NamedSharding(mesh, PartitionSpec("frames"))
    return resources


if __name__ == "__main__":
    cli.run(main)
