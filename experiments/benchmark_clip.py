"""The video that `experiments.benchmark` runs on: rendered, a real file, the truth beside it.

Rendered at 288x512 and written at 1280x720, so that decoding and resizing cost what they cost on
videos of cameras.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from align3r_jax.io import atomic
from data.procedural import make_long, make_sample

_RENDERED, _WRITTEN = (288, 512), (720, 1280)
_FACTS = {"rendered": list(_RENDERED), "written": list(_WRITTEN), "version": 1}


def prepare(folder: Path, frames: int) -> Path:
    """Returns a video of at least `frames` frames in `folder`; one that is there is taken."""
    video, note = folder / "benchmark_clip.mp4", folder / "benchmark_clip.json"
    if note.is_file() and video.is_file():
        facts = json.loads(note.read_text())
        if facts.pop("frames", 0) >= frames and facts == _FACTS:
            return video
    folder.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    rendered = make_long.render_long(frames, *_RENDERED)
    enlarged = [cv2.resize(image, _WRITTEN[::-1]) for image in rendered.images]
    make_sample.write_video(video, np.stack(enlarged), make_long.RATE)
    make_sample.write_truth(video.with_suffix(".truth.npz"), rendered)
    atomic.replace_file(note, json.dumps(_FACTS | {"frames": frames}).encode())
    return video
