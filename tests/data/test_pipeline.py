"""The pipeline on scenes in memory: the same batches for everyone, exact resume, bad files."""

import dataclasses
import logging as python_logging

import numpy as np
import pytest

from align3r_jax.errors import UserError
from data import augment, mixture, mixture_text, pipeline, sample_plan
from data.pipeline import settings_from
from tests.data import tiny_scenes

ROOTS = dict.fromkeys(("a", "b", "tall", "broken", "given", "one"), "memory")


def _settings(text="12 @ a + 6 @ b + 2 @ tall", **values):
    values = {
        "mixture": text, "roots": ROOTS, "prior": "depthpro", "batch_size": 4, "threads": 0,
        "resolutions": [[16, 32], [24, 32]], **values,
    }  # fmt: skip
    return settings_from(values)


def _stream(settings, start_step=0, index=0, count=1):
    return pipeline.training_batches(
        settings, start_step, index, count, find_scenes=tiny_scenes.scenes_of
    )


def _batches(settings, steps, **where):
    with _stream(settings, **where) as stream:
        return [stream.batch_of(step) for step in steps]


def _assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], name)


@pytest.fixture(scope="module")
def reference():
    return _batches(_settings(), range(8))


def test_batches_have_the_documented_form(reference):
    heights = set()
    for batch in reference:
        height, width = batch["depth"].shape[2:]
        heights.add(height)
        assert batch["images"].shape == (4, 2, height, width, 3)
        assert batch["prior_points"].shape == (4, 2, height, width, 3)
        assert {name: array.dtype.name for name, array in batch.items()} == {
            "images": "uint8", "depth": "float32", "intrinsics": "float32",
            "cam1_from_cam2": "float32", "portrait": "bool", "has_prior": "bool",
            "prior_points": "float32",
        }  # fmt: skip
        assert batch["has_prior"].all()
        assert batch["prior_points"].min() >= 0 and batch["prior_points"].max() <= 1
    assert heights == {16, 24}


def test_pairs_are_those_of_the_sets_and_poses_fit_them(reference):
    seen = []
    for batch in reference[:5]:
        depth = batch["depth"]
        values = depth.reshape(4, 2, -1)
        np.testing.assert_array_equal(values.min(-1), values.max(-1))
        scene = np.floor(values[..., 0] + 1e-4).astype(int) - 1
        index = np.rint((values[..., 0] - 1 - scene) * 100).astype(int)
        assert (scene[:, 0] == scene[:, 1]).all()
        gap = index[:, 1] - index[:, 0]
        assert (gap >= 1).all() and (gap <= 10).all()
        np.testing.assert_allclose(batch["cam1_from_cam2"][:, 0, 3], gap)
        np.testing.assert_array_equal(batch["portrait"], scene >= 50)
        swapped = batch["intrinsics"][..., 0, 0] == 0
        np.testing.assert_array_equal(swapped, batch["portrait"])
        seen += scene[:, 0].tolist()
    # Twenty samples are one epoch: 12 of a, 6 of b, 2 of tall.
    assert np.bincount(np.array(seen) // 10).tolist() == [12, 6, 0, 0, 0, 2]


def test_threads_do_not_change_batches(reference):
    settings = _settings(threads=3, prefetch=5)
    for got, expected in zip(_batches(settings, range(8)), reference):
        _assert_equal(got, expected)


def test_any_step_can_be_asked_for(reference):
    for got, step in zip(_batches(_settings(), [5, 6, 2, 2, 3, 0]), [5, 6, 2, 2, 3, 0]):
        _assert_equal(got, reference[step])
    for got, expected in zip(_batches(_settings(), [6, 7], start_step=6), reference[6:]):
        _assert_equal(got, expected)


def test_pre_training_sees_the_same_crops_and_colours_however_it_is_loaded():
    settings = _settings(augmentation="croco", prior=None, resolutions=[[16, 16]])
    expected = _batches(settings, range(3))
    for threads, count in ((3, 1), (0, 2)):
        changed = dataclasses.replace(settings, threads=threads)
        parts = [_batches(changed, [2, 1], index=k, count=count) for k in range(count)]
        for place, step in enumerate((2, 1)):
            joined = {
                name: np.concatenate([part[place][name] for part in parts])
                for name in expected[step]
            }
            _assert_equal(joined, expected[step])
    centres = np.stack([batch["intrinsics"][..., :2, 2] for batch in expected])
    assert (np.ptp(centres, axis=2) > 0).any(-1).all(), "the views of a pair are cropped apart"


@pytest.mark.parametrize("count", [2, 4])
def test_rows_of_all_processes_make_the_global_batch(reference, count):
    parts = [_batches(_settings(), range(4), index=k, count=count) for k in range(count)]
    for step in range(4):
        joined = {
            name: np.concatenate([part[step][name] for part in parts]) for name in parts[0][step]
        }
        _assert_equal(joined, reference[step])
    with pytest.raises(UserError, match="multiple of 3"):
        _stream(_settings(), index=0, count=3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_do_not_change_batches(reference, workers):
    settings = _settings(workers=workers, threads=1, prefetch=1)
    with _stream(settings) as stream:
        got = [stream.batch_of(step) for step in (0, 1, 2, 6)]
        for batch, step in zip(got, (0, 1, 2, 6)):
            _assert_equal(batch, reference[step])


@pytest.mark.slow
def test_worker_processes_report_files_that_cannot_be_read():
    with (
        _stream(_settings("broken", workers=2, max_unreadable=0.0)) as stream,
        pytest.raises(UserError, match="cannot be read"),
    ):
        for step in range(20):
            stream.batch_of(step)


def test_seeds_change_everything_and_augmentation_changes_views(reference):
    other = _batches(_settings(seed=1), range(2))
    for batch, expected in zip(other, reference):
        poses = [b["cam1_from_cam2"][:, :3, 3] for b in (batch, expected)]
        assert (poses[0] != poses[1]).any()
    plain = dataclasses.replace(_settings(), augmentation=augment.NONE)
    first, second = _batches(plain, [3])[0], reference[3]
    np.testing.assert_array_equal(first["depth"], second["depth"])  # the same pairs
    assert (first["images"] != second["images"]).any()
    assert (first["intrinsics"] != second["intrinsics"]).any()


def test_crops_come_from_one_generator_per_sample(reference):
    """The draws of a row by hand: view 1, then view 2, from (seed, step, row)."""
    batch = reference[4]
    options = _settings().augmentation
    for row in range(4):
        generator = np.random.default_rng((0, 4, row))
        if batch["portrait"][row].any():
            continue
        for place in (0, 1):
            matrix = np.array([[64, 0, 32], [0, 64, 20], [0, 0, 1.0]])
            target = batch["depth"].shape[2:]
            draw = augment.draw_crop(generator, (40, 64), matrix, target, options)
            crop = augment.train_crop.crop_view(
                augment.train_crop.View(np.zeros((40, 64, 3), np.uint8), {}, matrix), target, draw
            )
            np.testing.assert_allclose(batch["intrinsics"][row, place], crop.intrinsics, rtol=1e-6)


def test_reference_order_is_the_recorded_sampler():
    settings = _settings("9 @ a + 4 @ b", order="reference", batch_size=2)
    with _stream(settings) as stream:
        plan = stream.plan
        assert stream.samples_per_epoch == 13 and stream.steps_per_epoch == 6
        for step in (0, 5, 6, 13):
            epoch, place = divmod(step, 6)
            order = mixture.sampler_order(13, 2, 2, epoch)[2 * place : 2 * place + 2]
            drawn = plan.training_draw(step, np.arange(2))
            assert drawn.resolution == settings.resolutions[order[0, 1]]
            for row in range(2):
                in_a = order[row, 0] < 9
                count, base = (9, plan.sizes[0]) if in_a else (4, plan.sizes[1])
                items = mixture.resized_items(count, base, epoch)
                assert drawn.source[row] == (0 if in_a else 1)
                assert drawn.number[row] == items[order[row, 0] - (0 if in_a else 9)]
    with pytest.raises(UserError, match="fewer than one batch of 64"):
        _stream(_settings("9 @ a", order="reference", batch_size=64))


def test_unreadable_frames_are_replaced_counted_and_named_once(caplog):
    settings = _settings("broken", max_unreadable=0.05)
    caplog.set_level(python_logging.WARNING, logger="absl")
    with _stream(settings) as stream:
        batches = [stream.batch_of(step) for step in range(32)]
        samples = stream.samples
    for batch in batches:
        assert not np.isclose(batch["depth"], 1 + 20 + 0.03).any()
    # 10 of 130 pairs have the frame, 128 samples
    assert 4 <= samples.replaced <= 18 and samples.seen == 128
    assert len([line for line in caplog.messages if "20/3.png' is cut short" in line]) == 1
    _assert_equal(_batches(settings, [7])[0], batches[7])
    with (
        _stream(dataclasses.replace(settings, max_unreadable=0.002)) as stream,
        pytest.raises(UserError, match=r"3 of \d+ samples cannot be read; .* allows 0.20%"),
    ):
        for step in range(32):
            stream.batch_of(step)


def test_a_set_of_which_nothing_can_be_read_stops_at_once():
    settings = _settings("one(root=hopeless, pairs=window_1) + a(root=hopeless)")
    with pytest.raises(UserError, match="'one' .* no pair to train on: 1 scenes"):
        _stream(settings)
    with (
        _stream(_settings("b(root=hopeless)", max_unreadable=1.0)) as stream,
        pytest.raises(UserError, match="20 samples of 'b' in a row cannot be read; .*png"),
    ):
        stream.batch_of(0)


def test_priors_may_be_absent_dropped_or_of_some_sets_only():
    batch = _batches(_settings(prior=None), [0])[0]
    assert "prior_points" not in batch and not batch["has_prior"].any()
    mixed = _batches(_settings("10 @ a + 10 @ b(prior=none)"), range(5))
    for batch in mixed:
        of_b = batch["depth"][:, :, 0, 0] >= 11
        np.testing.assert_array_equal(batch["has_prior"], ~of_b)
        assert not batch["prior_points"][of_b].any()
    dropped = _batches(_settings(augmentation={"prior_dropout": 0.5}), range(10))
    has = np.concatenate([batch["has_prior"] for batch in dropped])
    assert (has[:, 0] == has[:, 1]).all() and 10 <= has[:, 0].sum() <= 30


def test_prescribed_pairs_and_rules_by_set():
    settings = _settings("given + 3 @ a", pairs={"a": "strides_2_2"})
    with _stream(settings) as stream:
        given, a = stream.plan.sources
        found = given.table.lookup(np.arange(len(given.table)))
        assert list(zip(found.first, found.second)) == [(0, 4), (7, 2)]
        found = a.table.lookup(np.arange(len(a.table)))
        assert (found.second - found.first == 2).all()
    with _stream(_settings("given(pairs=window_1)")) as stream:
        assert len(stream.plan.sources[0].table) == 7
    with _stream(_settings("given", pairs="window_1")) as stream:
        assert len(stream.plan.sources[0].table) == 2


def test_held_out_scenes_are_in_evaluation_and_nowhere_else():
    settings = _settings("a", hold_out=3, batch_size=4)
    with _stream(settings) as stream:
        assert [scene.name for scene in stream.plan.sources[0].scenes] == ["s0_left", "s1_left"]
    held = pipeline.evaluation_batches(settings, 0, 1, find_scenes=tiny_scenes.scenes_of)
    assert [scene.name for scene in held.plan.sources[0].scenes] == ["s2_left"]
    with pytest.raises(UserError, match="0 held-out scenes"):
        pipeline.evaluation_batches(
            _settings("a(hold_out=4)"), 0, 1, find_scenes=tiny_scenes.scenes_of
        )


def test_cameras_of_one_scene_are_held_out_together():
    names = [f"P{k}_{side}" for k in range(4) for side in ("left", "right")]
    names += ["a/left/x", "a/right/x", "d_camera1", "d_camera5", "leftover", "rightover"]
    held = sample_plan._held_out(names, 2)
    by_name = dict(zip(names, held))
    for first, second in (("P1_left", "P1_right"), ("a/left/x", "a/right/x"),
                          ("d_camera1", "d_camera5")):  # fmt: skip
        assert by_name[first] == by_name[second]
    assert held.sum() == 7 and by_name["leftover"] != by_name["rightover"]


def test_evaluation_is_a_fixed_subset_without_augmentation():
    settings = _settings("5 @ a + 2 @ tall", seed=3, batch_size=4)
    find = {"resolution": (16, 24), "find_scenes": tiny_scenes.scenes_of}
    batches = pipeline.evaluation_batches(settings, 0, 1, **find)
    assert len(batches) == 2
    loaded = list(batches)
    assert all(batch["images"].shape == (4, 2, 16, 24, 3) for batch in loaded)
    other = pipeline.evaluation_batches(dataclasses.replace(settings, seed=9), 0, 1, **find)
    _assert_equal(other[1], loaded[1])
    table = batches.plan.sources[0].table
    chosen = table.lookup(mixture.resized_items(5, len(table), 0))
    scene = np.floor(np.concatenate([b["depth"][:, 0, 0, 0] for b in loaded])[:5] + 1e-4) - 1
    np.testing.assert_array_equal(scene, chosen.scene)
    # Seven samples in two batches of four: the last row only fills.
    assert not loaded[1]["depth"][3].any() and loaded[1]["depth"][:3].all()
    halves = [pipeline.evaluation_batches(settings, k, 2, **find)[1] for k in (0, 1)]
    joined = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    _assert_equal(joined, loaded[1])
    default = pipeline.evaluation_batches(settings, 0, 1, find_scenes=tiny_scenes.scenes_of)
    assert default[0]["images"].shape == (4, 2, 224, 224, 3)
    with pytest.raises(IndexError):
        batches[2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixtur": "a"}, "'mixtur' of the data pipeline is unknown. Did you mean 'mixture'"),
        ({"resolutions": [[32, 16]]}, "portrait pictures are stored transposed"),
        ({"resolutions": [16, 32]}, "must be pairs"),
        ({"resolutions": []}, "is empty"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 2.5}, "batch_size must be int, got 2.5"),
        ({"workers": "2"}, "workers must be int"),
        ({"parity": 1}, "parity must be bool"),
        ({"prior": True}, "prior must be str"),
        ({"roots": "/data"}, "roots must be a mapping"),
        ({"order": "walks"}, "Did you mean 'walk'"),
        ({"split": "val"}, "split 'val' is unknown"),
        ({"pairs": {"a": "windows_3"}}, "pair rule 'windows_3'"),
        ({"hold_out": 1}, "no scene to train on"),
        ({"max_unreadable": 2.0}, r"\[0, 1\]"),
        ({"augmentation": "algn3r"}, "augmentation 'algn3r'"),
        ({"mixture": "a +"}, "character"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        _settings(**values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5 @ c", "folder of the set 'c' is not known"),
        ("5 @ c(root=x)", "'c' is unknown"),
        ("a(splt=test)", "Did you mean 'split'"),
        ("a(parity=yes)", "expected true or false"),
        ("a(hold_out=1)", "a number above 1"),
        ("a(pairs=near)", "pair rule 'near'"),
        ("a(pairs=prescribed)", "bring their pairs"),
    ],
)
def test_wrong_sets_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        _stream(_settings(text))


def test_settings_need_a_mixture_and_keep_defaults():
    with pytest.raises(UserError, match="needs a mixture"):
        settings_from({})
    settings = settings_from({"mixture": "10 @ a", "augmentation": "monst3r"})
    assert settings.augmentation == augment.PRESETS["monst3r"]
    assert settings.resolutions == ((288, 512), (336, 512), (256, 512))
    assert mixture_text.parse(settings.mixture) == mixture.Resized(10, mixture.Source("a"))
