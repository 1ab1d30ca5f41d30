"""The sample video that ships fits its truth, and the code still describes the same world."""

from pathlib import Path

import av
import jax
import numpy as np
import pytest

from align3r_jax.errors import UserError
from data.procedural import benchmark, make_sample, render

_FOLDER = Path(make_sample.__file__).parents[1] / "samples"


def test_files_fit_together_and_are_small():
    truth = np.load(_FOLDER / f"{make_sample.NAME}.truth.npz")
    with av.open(str(_FOLDER / f"{make_sample.NAME}.mp4")) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    shape = (make_sample.FRAMES, make_sample.HEIGHT, make_sample.WIDTH)
    assert np.stack(images).shape == (*shape, 3)
    assert truth["depth"].shape == truth["dynamic_mask"].shape == shape
    assert truth["world_from_cam"].shape == (shape[0], 4, 4)
    assert 0.02 < truth["dynamic_mask"].mean() < 0.2
    steps = np.linalg.norm(np.diff(truth["world_from_cam"][:, :3, 3], axis=0), axis=1)
    assert 0.5 < steps.sum() < 1.0
    assert sum(path.stat().st_size for path in _FOLDER.iterdir()) < 3e6
    assert (_FOLDER / f"{make_sample.NAME}.mp4").stat().st_size < 1.5e6


def test_the_code_regenerates_the_truth():
    truth = np.load(_FOLDER / f"{make_sample.NAME}.truth.npz")
    last = make_sample.FRAMES - 1
    view = jax.jit(render.view, static_argnums=(2, 3))(
        make_sample.sample_world(),
        np.float32(truth["times"][last]),
        make_sample.HEIGHT,
        make_sample.WIDTH,
    )
    stored = truth["depth"][last].astype(np.float32)
    agree = np.abs(np.asarray(view.depth) - stored) < 2e-3 * stored
    assert agree.mean() > 0.999  # float16, and a pixel on an edge may fall to either side
    assert float(view.focal) == pytest.approx(truth["intrinsics"][last, 0, 0], rel=1e-6)


def test_benchmark_names():
    assert len(set(benchmark.names())) == len(benchmark.CASES) >= 6
    with pytest.raises(UserError, match="desk"):
        benchmark.render("nowhere")
