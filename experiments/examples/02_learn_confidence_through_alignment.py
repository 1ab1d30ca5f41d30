"""Alignment as a layer: learn which pixels to trust from nothing but the error of the cameras.

    python -m experiments.examples.02_learn_confidence_through_alignment --output=out/confidence

A glare lies over a part of every frame. The pair predictor is fooled there: it sees the points of a
reflection, which drift with time, and is as sure of them as of all others. A convolution network of
300 weights looks at the images and says how far to trust every pixel; it is trained by the error of
the cameras after the alignment, whose gradient runs back through all iterations. No mask is ever
shown to it. Prints the camera error before and after, on the clip of the training and on one it has
never seen, and draws learned_confidence.png. One to two minutes on two cores, mostly compilation.
"""

from pathlib import Path

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

import align3r_jax
from align3r_jax import pairing
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.evaluation import trajectory
from align3r_jax.geometry import rigid
from align3r_jax.io import preview
from data.procedural import benchmark, oracle
from experiments import cli

OUTPUT = flags.DEFINE_string("output", None, "Folder of the picture.", required=True)
STEPS = flags.DEFINE_integer("steps", 40, "Steps of the training.", lower_bound=1)
FRAMES, HEIGHT, WIDTH = 5, 36, 48
GRAPH = pairing.make_pairs(FRAMES, "swinstride-2-noncyclic")
CONFIG = align3r_jax.AlignmentConfig(iterations=64, distance_floor=0.003)


def fooled_clip(case: str) -> tuple:
    """Returns (images, glare (T, H, W), predictions, true poses) of a clip of the benchmark."""
    video = benchmark.render(case, frames=FRAMES, height=HEIGHT, width=WIDTH, supersample=1)
    predictor = oracle.OraclePredictor(video, oracle.OracleNoise(outliers=0.0))
    predictions = predictor.predict(predictor.prepare(None, None, None), GRAPH)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    centre = WIDTH * (0.25 + 0.12 * np.arange(FRAMES))[:, None, None]
    glare = ((x - centre) / 12) ** 2 + ((y - HEIGHT / 2) / 11) ** 2 < 1
    washed = 0.55 * video.images / 255 + 0.45 * np.array([0.75, 0.85, 1.0])
    images = np.where(glare[..., None], washed, video.images / 255).astype(np.float32)
    first, second = GRAPH.pairs.T
    drift = np.median(predictions.pointmap2[..., 2], axis=(1, 2)) * (second - first)
    drift = drift[:, None, None, None] * np.array([0.08, 0.03, 0.0])
    points = predictions.pointmap2 + np.where(glare[second][..., None], drift, 0)
    return images, glare, predictions.replace(pointmap2=np.float32(points)), video.world_from_cam


class Trust(nn.Module):
    """Images (T, H, W, 3) -> confidences (T, H, W) in (1, 10)."""

    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Conv(8, (3, 3))(images - 0.5))
        return 1 + 9 * nn.sigmoid(nn.Conv(1, (3, 3))(hidden)[..., 0])


def aligned_cameras(align, predictions, confidence=None):
    """Returns (T, 4, 4) poses; confidence (T, H, W) instead of the predictor's own."""
    if confidence is not None:
        one, two = (confidence[frame] for frame in GRAPH.pairs.T)
        predictions = predictions.replace(confidence1=one, confidence2=two)
    variables, _ = align(predictions, GRAPH, config=CONFIG)
    return variables_lib.decode(variables, CONFIG, (HEIGHT, WIDTH)).world_from_cam


def pose_loss(found, truth):
    """Squared errors of all relative poses; positions in units of how far the camera moves."""
    steps = [rigid.compose(rigid.invert(p)[:, None], p[None]) for p in (found, truth)]
    moves = [s[..., :3, 3] / jnp.sqrt(jnp.mean(s[..., :3, 3] ** 2)) for s in steps]
    turns = [s[..., :3, :3] for s in steps]
    return jnp.mean((moves[0] - moves[1]) ** 2) + jnp.mean((turns[0] - turns[1]) ** 2)


def train(images, predictions, truth, steps: int):
    """Returns the best weights of `Trust` and all losses."""
    weights, optimiser = Trust().init(jax.random.key(0), images), optax.adam(0.03)
    state, tried, losses = optimiser.init(weights), [], []

    @jax.jit
    def step(weights, state):
        def loss(weights):
            confidence = Trust().apply(weights, images)
            found = aligned_cameras(align3r_jax.align_unrolled, predictions, confidence)
            return pose_loss(found, jnp.asarray(truth))

        value, gradient = jax.value_and_grad(loss)(weights)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(weights, updates), state, value

    for _ in range(steps):
        tried.append(weights)
        weights, state, value = step(weights, state)
        losses.append(float(value))
    return tried[int(np.argmin(losses))], losses


def main(argv: list[str]) -> None:
    del argv
    clips = {"trained on": fooled_clip("room"), "never seen": fooled_clip("crowded")}
    images, _, *rest = clips["trained on"]
    weights, losses = train(images, *rest, STEPS.value)
    rows = []
    for name, (images, glare, predictions, truth) in clips.items():
        learned = np.asarray(Trust().apply(weights, images))
        errors = [
            trajectory.evaluate(np.asarray(poses, np.float64), truth).ate
            for poses in (
                aligned_cameras(align3r_jax.align, predictions, c) for c in (None, learned)
            )
        ]
        print(f"clip {name}: camera error {errors[0]:.4f} m -> {errors[1]:.4f} m")
        shown = np.uint8(255 * images)
        parts = shown, preview.overlay_mask(shown, glare), preview.colour_confidence(learned, 10)
        rows.append(preview.strip(np.concatenate([part[::2] for part in parts]), 96, 4))
    chart = np.full((150, rows[0].shape[1], 3), 255, np.uint8)
    x, y = (
        np.linspace(20, chart.shape[1] - 20, len(losses)),
        140 - 110 * np.array(losses) / losses[0],
    )
    line = np.stack([x, y], axis=-1).round().astype(np.int32)
    cv2.polylines(chart, [line], False, (20, 90, 170), 2, cv2.LINE_AA)
    text = f"camera loss {losses[0]:.3f} to {min(losses):.3f}, {len(losses)} steps. Below: "
    text += "image, glare (red), learned confidence; first the clip trained on, then one never seen"
    cv2.putText(chart, text, (20, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    output = Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    picture = preview.encode_png(np.concatenate([chart, *rows]))
    (output / "learned_confidence.png").write_bytes(picture)


if __name__ == "__main__":
    cli.run(main)
