"""Measures what the shipped small networks are worth beside the trivial baselines.

    python -m experiments.measure_gates [--clip=DIR] [--write]

Unseen procedural clips with unseen textures; with --clip also a real RGB-D sequence (`rgb/`,
`depth/*.png` at 5000 levels a metre). Of `align3r_small` also what single pairs are worth without
any aligner, with the prior and without: depth, and rotation between the cameras. --write records
the figures and what follows from them in `align3r_jax/weights/shipped/gates.json`, which decides
where the networks are used by default.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import cv2
import jax
import numpy as np
from absl import flags

import align3r_jax
from align3r_jax.config import NetworkConfig
from align3r_jax.evaluation import depth as depth_metrics
from align3r_jax.evaluation import summary
from align3r_jax.predictors import refine
from align3r_jax.priors import mono_depth, shipped
from align3r_jax.structs import DepthPrior, Frames
from align3r_jax.weights import store
from data.procedural import benchmark, noise, stream
from data.procedural.clip import frames_of
from experiments import cli, pair_scores

CLIP = flags.DEFINE_string("clip", None, "Folder of a real RGB-D sequence, also measured.")
WRITE = flags.DEFINE_bool("write", False, "Write gates.json.")

_PAIR_SIZE = (128, 160)  # at which it was trained
_BEATS = 0.98  # of the baseline: smaller differences mean nothing on a few clips


def frame_abs_rel(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Returns Abs Rel with one median scale per frame, mean over frames."""
    scores = [
        depth_metrics.evaluate(p[None], t[None], summary.ONE_SCALE).metrics["Abs Rel"]
        for p, t in zip(prediction, truth)
    ]
    return float(np.mean(scores))


def measure(frames: Frames, truth: np.ndarray, instance: np.ndarray, seed: int) -> dict:
    """Returns Abs Rel of both networks and of their baselines on one clip.

    truth: (T, H, W) depth, 0 where unknown; instance: (T, H, W) object numbers.
    """
    mono = mono_depth.estimate_depth(frames, None, "small", models=shipped.mono_models())
    complete = np.where(truth > 0, truth, np.median(truth[truth > 0]))
    noisy = np.asarray(noise.noisy_prior(jax.random.key(seed), complete, instance))
    prior = DepthPrior(noisy, noisy, None, "files")
    refined = refine.with_shipped(frames, prior)
    return {
        "constant": frame_abs_rel(np.ones_like(truth), truth),
        "small_depth": frame_abs_rel(np.asarray(mono.depth), truth),
        "noisy_prior": frame_abs_rel(noisy, truth),
        "align3r_small": frame_abs_rel(np.asarray(refined.depth), truth),
    }


def measure_pairs() -> dict[str, dict[str, float]]:
    """Returns depth and rotation errors of `align3r_small` on 64 unseen pairs, and baselines'."""
    network = store.load("align3r_small")
    assert isinstance(network.config, NetworkConfig)
    batches = stream.validation_batches(*_PAIR_SIZE, 4, 16)
    predict = pair_scores.make_predict(network.config)
    blind = pair_scores.without_prior(batches)
    return pair_scores.baselines(batches) | {
        "align3r_small": pair_scores.scores(predict, network.params, batches),
        "align3r_small without prior": pair_scores.scores(predict, network.params, blind),
    }


def real_clip(folder: Path) -> tuple[Frames, np.ndarray]:
    """Returns the frames and measured depth (T, H, W) metres at working size of a sequence."""
    frames, _ = align3r_jax.read_frames(folder / "rgb", size=320)
    paths = sorted((folder / "depth").glob("*.png"))
    height, width = frames.images.shape[1:3]
    depth = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) / 5000.0 for path in paths]
    resized = [cv2.resize(d, (width, height), interpolation=cv2.INTER_NEAREST) for d in depth]
    return frames, np.stack(resized).astype(np.float32)


def main(argv: Sequence[str]) -> None:
    del argv
    rows = {}
    for index, (name, clip) in enumerate(benchmark.clips(frames=6)):
        rows[name] = measure(frames_of(clip), clip.depth, clip.instance, index)
    procedural = {key: float(np.mean([row[key] for row in rows.values()])) for key in rows["desk"]}
    real = None
    if CLIP.value:
        frames, depth = real_clip(Path(CLIP.value))
        real = measure(frames, depth, np.zeros(depth.shape, np.int32), 0)
        rows["real clip"] = real
    for name, row in (rows | {"procedural mean": procedural}).items():
        print(f"{name:16s} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    pairs = measure_pairs()
    for name, row in pairs.items():
        print(f"pairs: {name:28s} " + "  ".join(f"{key} {row[key]:.3f}" for key in row))
    everywhere = [procedural] + ([real] if real else [])
    beats = {
        network: all(row[network] < _BEATS * row[baseline] for row in everywhere)
        for network, baseline in (("small_depth", "constant"), ("align3r_small", "noisy_prior"))
    }
    print(f"beats its baseline: {beats}")
    if WRITE.value:
        content = {
            "small_depth": {"use": {"as_default_prior": beats["small_depth"]}},
            "align3r_small": {"use": {"refine_prior": beats["align3r_small"]}},
            "measured": {
                "procedural": procedural,
                "real": real,
                "unit": "Abs Rel per frame",
                "pairs": pairs,
            },
        }
        path = Path(str(resources.files("align3r_jax.weights"))) / "shipped" / "gates.json"
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
