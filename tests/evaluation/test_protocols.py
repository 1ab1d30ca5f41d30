"""Protocols and published numbers as data: what they say, and that the parts fit each other."""

import dataclasses
import json
import re

import pytest

from align3r_jax import config as config_lib
from align3r_jax.errors import UserError
from align3r_jax.evaluation import protocols, published, tables
from data.readers import datasets
from data.readers.sequence import ReaderOptions

EVERY = [(name, task) for name, tasks in protocols.PROTOCOLS.items() for task in tasks]


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_every_protocol_fits_readers_and_prints_itself(name, task):
    for dataset in (*datasets.DATASETS, "procedural"):
        protocol = protocols.get(name, task, dataset)
        assert protocol.source and not set(protocol.exceptions) - {"temple_3"}
        assert protocols.of_sequence(protocol, "alley_2") == dataclasses.replace(
            protocol, exceptions={}
        )
        ReaderOptions(**dataclasses.asdict(protocol.reading)).check()
        text = json.dumps(config_lib.to_dict(protocol))
        assert '"iterations": 300' in text
    places = {re.split("[/+]", key)[0] for key in protocols.PROTOCOLS[name][task].exceptions}
    assert places <= set(datasets.DATASETS)


def test_choices_of_the_papers():
    """The ones that move numbers most."""
    paper = protocols.get("align3r_paper", "video_depth", "sintel")
    assert (
        paper.depth.fit == "lad" and paper.depth.max_depth == 70 and paper.depth.min_depth == 1e-3
    )
    run = paper.running.reconstruct
    assert paper.interpolation == "linear" and run.equal_confidence
    assert (run.pairs.mode, run.pairs.clip_size, run.pairs.clip_symmetric) == (
        "hierarchical", 20, False,
    )  # fmt: skip
    assert run.alignment.lr == 0.05 and run.alignment.flow_weight == 0 and not run.pairs.symmetrize
    code = protocols.get("align3r_code", "video_depth", "sintel")
    assert code.running.reconstruct.pairs.clip_size == 50 and code.reading.render_pass == "clean"

    sintel, kitti = (protocols.get("monst3r", "video_depth", d) for d in ("sintel", "kitti"))
    assert sintel.depth.fit == "lad2" and sintel.depth.clip == (None, 70.0)
    assert kitti.depth.max_depth is None and kitti.interpolation == "cubic"
    assert kitti.running.reconstruct.alignment.flow_weight == 0
    assert sintel.running.reconstruct.alignment.flow_weight == 0.01

    rows, ours = (protocols.get(n, "camera_pose", "tum") for n in ("align3r_paper", "ours"))
    assert rows.reading.association == "reference_rows" and rows.reading.max_frames == 30
    assert rows.running.reconstruct.pairs.graph == "swin-5-noncyclic"
    assert ours.reading.association == "stamps"
    crafter = protocols.get("depthcrafter", "video_depth", "sintel")
    assert crafter.depth.disparity and crafter.depth.fit == "lstsq"
    assert crafter.reading.max_frames == 50


@pytest.mark.parametrize("name", ("align3r_paper", "align3r_code"))
def test_windows_of_align3r_follow_the_prior_and_temple_3_has_a_gate_of_its_own(name):
    def graph(dataset, prior=None):
        protocol = protocols.get(name, "camera_pose", dataset, prior)
        return protocol.running.reconstruct.pairs.graph

    strided, window = "swinstride-5-noncyclic", "swin-5-noncyclic"
    assert graph("sintel") == graph("sintel", "depth_pro") == strided
    assert graph("sintel", "depth_anything_v2_large") == window
    assert graph("sintel", "stored:depthanything") == window
    assert graph("tum") == graph("scannet") == window
    assert graph("pointodyssey", "depth_anything_v2_large") == strided
    sintel = protocols.get(name, "camera_pose", "sintel")
    gates = {
        sequence: protocols.of_sequence(sintel, sequence).running.reconstruct.alignment.flow_gate
        for sequence in ("alley_2", "temple_3")
    }
    assert gates == {"alley_2": 40.0, "temple_3": 10.0}
    assert protocols.get("monst3r", "camera_pose", "sintel").exceptions == {}


def test_unknown_names_are_sentences():
    with pytest.raises(UserError, match="known are align3r_paper"):
        protocols.get("align4r", "motion", "davis")
    with pytest.raises(UserError, match="covers video_depth, single_depth"):
        protocols.get("depthcrafter", "motion", "davis")


def test_published_numbers_have_sources():
    rows = published.everything()
    known = {*tables.scores_of("video_depth"), *tables.scores_of("camera_pose")}
    for row in rows:
        assert row.source and set(row.metrics) <= known
        for name, value in row.metrics.items():
            assert value is None or value > 0
            assert not name.startswith("delta") or value is None or value < 1
    table_4 = [r for r in published.rows("camera_pose", "scannet") if r.method == "MonST3R"]
    assert table_4[0].metrics == {"ate": 0.068, "rpe_trans": 0.017, "rpe_rot_deg": 0.545}
    found = published.rows("video_depth", "sintel")
    assert len({row.method for row in found}) >= 10
    assert not any(row.is_ablation for row in found)
    assert published.rows("video_depth", "sintel", ablations=True)
    assert published.rows("camera_pose", "sintel/alley_2")[0].metrics["ate"] == 0.0095
    # What was looked for and not found shows as a gap.
    assert any(row.metrics["Abs Rel"] is None for row in published.rows("video_depth", "tum"))
