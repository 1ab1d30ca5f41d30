"""Time, operations, memory and achieved share of the hardware of every stage of a video.

    python -m experiments.benchmark --preset=small,align3r_vitl_512 --frames=10,30 [--full]

Runs the main flow on a rendered video, written as a real file, with the networks that --preset
names (random weights, but for the shipped `small`; `flow`: the predictor without weights) and
measures stage by stage. Ceilings are measured in the same run: a matrix product (FLOP/s) and a
large copy (bytes/s). What would take a network more than half a minute is run in part and
multiplied, and marked so; --full runs everything. --peer=DIR times your own PyTorch checkout of
DUSt3R, MonST3R or Align3R on the same frames. Writes `benchmark.json`, `.md` and `.svg` after every
case (a preset and a length); --resume goes on. docs/performance.md says what the columns mean.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from align3r_jax.errors import UserError
from align3r_jax.io import atomic
from align3r_jax.predictors import network_programs
from experiments import (
    benchmark_cases,
    benchmark_clip,
    benchmark_measure,
    benchmark_pairwise,
    benchmark_peer,
    benchmark_prior,
    benchmark_report,
    cli,
)

PRESET = flags.DEFINE_list(
    "preset", ["small", "align3r_vitl_512_dpt"],
    "Networks to measure: small (the shipped one), flow (the predictor without weights), or names "
    "of config.NETWORK_PRESETS, or what one of these begins with.",
)  # fmt: skip
FRAMES = flags.DEFINE_list("frames", ["10"], "Lengths of the video, in frames: 10,30,60,120.")
SIZE = flags.DEFINE_integer(
    "size", 0, "Working size: long side in pixels, 224 for the square rule. 0: each preset's own.",
    lower_bound=0,
)  # fmt: skip
OUTPUT = flags.DEFINE_string(
    "output", "outputs/benchmark", "Folder for benchmark.json, .md and .svg, and for the video."
)
VIDEO = flags.DEFINE_string(
    "video", None, "Your own video instead of the rendered one. Without a .truth.npz beside it the "
    "alignment runs on what the flow predictor finds.",
)  # fmt: skip
FULL = flags.DEFINE_bool("full", False, "Run every batch of the networks, however long it takes.")
SAMPLE = flags.DEFINE_integer(
    "sample",
    1,
    "Batches (of --pair_batch frames or pairs) that are run where all would take too long.",
    lower_bound=1,
)
PAIR_BATCH = flags.DEFINE_integer(
    "pair_batch", 0, "Frames encoded, and pairs decoded, together; 0: 1 on CPUs, 4 elsewhere.",
    lower_bound=0,
)  # fmt: skip
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"],
    "Compute type of the networks, and of the matrix product that they are compared with. "
    "Default: float32 on CPUs, bfloat16 elsewhere.",
)  # fmt: skip
PRIOR = flags.DEFINE_string(
    "prior", "auto", "Depth prior: plane, none, small, depth_pro or depth_anything_v2_{small,base,"
    "large}, with random weights. auto: depth_anything_v2_small for Align3R, none for DUSt3R, "
    "plane for small and flow.",
)  # fmt: skip
QUICK = flags.DEFINE_bool("quick", False, "Smaller matrices for the ceilings: rougher, sooner.")
RESUME = flags.DEFINE_bool("resume", False, "Take cases that benchmark.json holds from there.")
PEER = flags.DEFINE_string(
    "peer", None, "Your PyTorch checkout of DUSt3R, MonST3R or Align3R, to be timed on the same "
    "frames. Default: none.",
)  # fmt: skip
PEER_PYTHON = flags.DEFINE_string(
    "peer_python", None, "The Python that the checkout runs in. Default: this one."
)
PEER_WEIGHTS = flags.DEFINE_string(
    "peer_weights", None, "What the checkout's from_pretrained takes. Default: random weights."
)


def main(argv: Sequence[str]) -> None:
    del argv
    lengths = [_length(text) for text in FRAMES.value]
    presets = [benchmark_pairwise.preset_name(name) for name in PRESET.value]
    if not presets or not lengths:
        raise UserError("--preset and --frames must each name at least one.")
    benchmark_prior.check(PRIOR.value)
    dtype = DTYPE.value or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    peer = None
    if PEER.value:
        peer = benchmark_peer.check(PEER.value, PEER_PYTHON.value, PEER_WEIGHTS.value)
    folder = Path(OUTPUT.value)
    with atomic.told_to_user(folder):
        folder.mkdir(parents=True, exist_ok=True)
    settings = benchmark_cases.Settings(
        size=SIZE.value, dtype=dtype, prior=PRIOR.value,
        pair_batch=network_programs.batch_size(PAIR_BATCH.value),
        sample=SAMPLE.value, full=FULL.value, quick=QUICK.value, video=VIDEO.value,
    )  # fmt: skip
    # Every program is compiled once, and never taken from an earlier run: compiling is measured.
    with tempfile.TemporaryDirectory(prefix="benchmark_xla_") as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        report = benchmark_report.Report(folder, _machine(), settings.facts(), RESUME.value)
        wanted = [(preset, count) for preset in presets for count in lengths]
        video = Path(VIDEO.value) if VIDEO.value else None
        for preset, count in wanted:
            if not report.has(preset, count):
                if video is None:
                    print("Rendering the video ...", flush=True)
                    video = benchmark_clip.prepare(folder, max(lengths))
                print(f"{preset}, {count} frames ...", flush=True)
                report.add(benchmark_cases.run(preset, count, video, settings, folder, peer))
            print(benchmark_report.case_text(report.case(preset, count)) + "\n", flush=True)
    print(f"Written to {folder}: {', '.join(benchmark_report.FILES)}")


def _length(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise UserError(f"--frames={','.join(FRAMES.value)}: expected whole numbers from 2 on.")
    return int(text)


def _machine() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": platform.machine(),
        "cores": benchmark_measure.cores(),
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    cli.run(main)
