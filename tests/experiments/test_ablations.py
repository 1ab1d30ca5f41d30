"""The ablations as configs, and one small table of them."""

import json

import pytest

from align3r_jax import pairing
from align3r_jax.config import ReconstructConfig
from experiments import ablation_variants as ablations
from tests.experiments.test_convert_weights import run_cases


def test_every_variant_changes_what_it_says():
    base = ReconstructConfig()
    built = {
        name: ablations.configured(v, base) for name, v in ablations.VARIANTS_OF_PAPERS.items()
    }
    assert built.pop("default") == base and built.pop("no_mask") == base
    assert len({str(config) for config in built.values()} | {str(base)}) == len(built) + 1
    assert built["no_flow"].alignment.flow_weight == 0
    assert built["no_smoothness"].alignment.smoothness_weight == 0
    assert built["hierarchical_5"].pairs.mode == "hierarchical"
    assert not built["hierarchical_no_join"].alignment.join_rescale
    counts = {n: pairing.make_pairs(16, c.pairs).num_pairs for n, c in built.items()}
    assert counts["window_3"] < counts["window_5"] < counts["window_7"] < counts["complete"]


def test_the_table_has_means_over_clips():
    cells = {
        "default": {"desk": {"ate_over_path": 0.1, "mask_iou": 0.5}, "room": {
            "ate_over_path": 0.3, "mask_iou": 0.7}},
        "no_mask": {"desk": {"ate_over_path": 0.4}, "room": {"ate_over_path": 0.2}},
    }  # fmt: skip
    table = ablations.table(cells, ["default", "no_mask"], "note")
    assert [column.key for column in table.columns] == ["ate_over_path", "mask_iou"]
    assert table.rows[0].values["ate_over_path"] == pytest.approx(0.2)
    assert table.rows[1].values == {"ate_over_path": pytest.approx(0.3)}


@pytest.mark.slow
def test_a_small_table_resumes(tmp_path):
    small = [f"--output={tmp_path}/out", "--clips=desk", "--frames=4", "--height=48",
             "--width=64", "--iterations=10", "--pairs=oracle"]  # fmt: skip
    results = run_cases("ablations", [
        [*small, "--variants=default,no_flow"],
        [*small, "--variants=default,no_flow,no_mask"],
        [*small, "--variants=no_floor"],
    ])  # fmt: skip
    assert [code for code, _, _ in results] == [0, 0, 2], results
    assert "Unknown variants ['no_floor']" in results[2][2]
    cells = json.loads((tmp_path / "out" / "cells.json").read_text())
    assert len(cells) == 3 and all(cell["ate_over_path"] < 0.5 for cell in cells.values())
    text = (tmp_path / "out" / "table.md").read_text()
    assert text.count("\n| ") == 5 and "no static mask" in text
