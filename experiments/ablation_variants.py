"""The ablations of the papers as changes of the default settings, and their table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align3r_jax.config import ReconstructConfig
from align3r_jax.evaluation import protocols, tables

COLUMNS = (
    ("ate_over_path", "ATE / path", 4, "lower"),
    ("rpe_trans", "RPE trans [m]", 4, "lower"),
    ("rpe_rot_deg", "RPE rot [deg]", 3, "lower"),
    ("abs_rel", "Abs Rel", 4, "lower"),
    ("delta_1.25", "δ < 1.25", 3, "higher"),
    ("mask_iou", "mask IoU", 3, "higher"),
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """changes: fields of `ReconstructConfig`, nested. static: every pixel is told to stand still,
    so that nothing is masked."""

    title: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    static: bool = False


def _graph(name: str) -> dict[str, Any]:
    return {"pairs": {"graph": name, "mode": "flat"}}


def _clips(size: int) -> dict[str, Any]:
    return {"pairs": {"mode": "hierarchical", "clip_size": size}}


VARIANTS_OF_PAPERS: dict[str, Variant] = {
    "default": Variant("default: flat, window 5 stride 2"),
    "adam": Variant("default, solved by Adam", {"alignment": {"solver": "adam"}}),
    "no_flow": Variant("no flow loss", {"alignment": {"flow_weight": 0.0}}),
    "no_mask": Variant("no static mask", static=True),
    "no_smoothness": Variant("no smoothness", {"alignment": {"smoothness_weight": 0.0}}),
    "own_focals": Variant("one focal per frame", {"alignment": {"shared_focal": False}}),
    "hierarchical_5": Variant("hierarchical, clips of 5", _clips(5)),
    "hierarchical_8": Variant("hierarchical, clips of 8", _clips(8)),
    "hierarchical_no_join": Variant(
        "hierarchical, clips of 8, scales not joined",
        {**_clips(8), "alignment": {"join_rescale": False, "joint_iterations": 0}},
    ),
    "window_3": Variant("window 3", _graph("swin-3-noncyclic")),
    "window_5": Variant("window 5", _graph("swin-5-noncyclic")),
    "window_7": Variant("window 7", _graph("swin-7-noncyclic")),
    "window_3_stride_2": Variant("window 3, stride 2", _graph("swinstride-3-noncyclic")),
    "complete": Variant("all pairs", _graph("complete")),
    **{
        f"flow_{weight:g}": Variant(
            f"flow weight {weight:g}", {"alignment": {"flow_weight": weight}}
        )
        for weight in (0.001, 0.1)
    },
    **{
        f"smoothness_{weight:g}": Variant(
            f"smoothness weight {weight:g}", {"alignment": {"smoothness_weight": weight}}
        )
        for weight in (0.001, 0.1)
    },
}


def configured(variant: Variant, base: ReconstructConfig) -> ReconstructConfig:
    """Returns the settings of a variant."""
    return protocols.replaced(base, variant.changes)


def table(
    cells: Mapping[str, Mapping[str, Mapping[str, float]]], variants: Sequence[str], note: str
) -> tables.Table:
    """Returns the table: one row per variant, means over its clips."""
    rows = []
    for name in variants:
        scores = list(cells[name].values())
        values = {
            key: float(np.mean([entry[key] for entry in scores]))
            for key, *_ in COLUMNS
            if scores and all(entry.get(key) is not None for entry in scores)
        }
        rows.append(tables.Row(VARIANTS_OF_PAPERS[name].title, values, strong=name == "default"))
    columns = tuple(tables.Column(*column) for column in COLUMNS)
    return tables.Table("Ablations", "variant", columns, tuple(rows), (note,)).used()
