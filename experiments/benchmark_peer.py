"""The user's own PyTorch checkout of DUSt3R, MonST3R or Align3R beside ours, on the same frames.

It runs in a process of its own (`peer_process.py`), inside the checkout's folder, by the names its
README documents. Frames, pairs and, for the alignment, the same point maps go there as one file;
times come back.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align3r_jax.errors import UserError
from experiments.benchmark_rows import Row
from experiments.benchmark_stages import Flow

_PROCESS = Path(__file__).with_name("peer_process.py")
_MODULE = Path("dust3r", "model.py")
# As a script it would see the modules beside it; so it sees those of the checkout.
_START = (
    "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
_SAMPLED_PAIRS, _ITERATIONS, _SAMPLED_ITERATIONS = 4, 300, 10
_MAX_ALIGNED = 64  # pairs whose point maps travel: a gigabyte of them at most


@dataclasses.dataclass(frozen=True)
class Peer:
    """folder: of the checkout. python: interpreter. weights: for `from_pretrained`, "" for none."""

    folder: Path
    python: str
    weights: str
    torch: str
    device: str


def check(folder: str, python: str | None, weights: str | None) -> Peer:
    """Returns a checkout that can run. Raises UserError that says what is missing."""
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise UserError(f"--peer={folder} is no folder; name your checkout of DUSt3R or a kin.")
    if not (path / _MODULE).is_file():
        raise UserError(
            f"--peer={folder} has no {_MODULE}; expected the top folder of a checkout of DUSt3R, "
            "MonST3R or Align3R, its submodules included (git submodule update --init)."
        )
    python = python or sys.executable
    found = _call(path, python, ["check"])
    return Peer(path, python, weights or "", found["torch"], found["device"])


def compare(peer: Peer, flow: Flow, rows: Sequence[Row], full: bool) -> dict[str, Any]:
    """Returns the peer's times on the same frames and pairs, ours, and ratios (peer / ours).

    On a CPU some pairs and iterations are run and multiplied, unless `full`.
    """
    pairs = np.concatenate([graph.pairs for graph in flow.graphs])
    sampled = peer.device == "cpu" and not full
    count = min(_SAMPLED_PAIRS, len(pairs)) if sampled else len(pairs)
    arrays: dict[str, Any] = {"images": flow.frames.images, "pairs": pairs[:count]}
    if flow.prior is not None:
        arrays["prior"] = flow.prior.depth
    facts = {"weights": peer.weights, "iterations": 0, "batch": 1}
    first = flow.first
    if flow.mode == "flat" and first is not None and len(pairs) <= _MAX_ALIGNED:
        facts["iterations"] = _SAMPLED_ITERATIONS if sampled else _ITERATIONS
        arrays["all_pairs"] = pairs
        for name in ("pointmap1", "pointmap2", "confidence1", "confidence2"):
            arrays[name] = np.asarray(getattr(first, name))
    with tempfile.TemporaryDirectory(prefix="benchmark_peer_") as folder:
        inputs, output = Path(folder, "inputs.npz"), Path(folder, "times.json")
        np.savez(inputs, facts=np.array(json.dumps(facts)), **arrays)
        _call(peer.folder, peer.python, ["run", str(inputs), str(output)])
        found = json.loads(output.read_text())
    ours = {row.stage: row for row in rows}
    compared = [
        ("encode and decode pairs", found["pairs"], count, len(pairs), ("encode", "decode pairs"))
    ]
    if facts["iterations"]:
        compared.append(
            (f"align, {_ITERATIONS} iterations there", found["align"], facts["iterations"],
             _ITERATIONS, ("initialise", "align"))
        )  # fmt: skip
    return {
        "name": peer.folder.name,
        "torch": peer.torch,
        "device": peer.device,
        "weights": f"weights {peer.weights}" if peer.weights else "random weights",
        "rows": [
            _row(*entry, [ours[name] for name in entry[-1] if name in ours]) for entry in compared
        ],
    }


def _row(
    stage: str, times: dict[str, Any], run: int, of: int, names: Any, ours: list[Row]
) -> dict[str, Any]:
    del names
    row: dict[str, Any] = {"stage": stage, "run": run, "of": of, "failed": times.get("failed", "")}
    if row["failed"]:
        return row
    for name in ("seconds", "cpu_seconds"):
        row[name] = times.get(f"once_{name}", 0.0) + times[name] * of / run
        row[f"our_{name}"] = sum(getattr(part, name) for part in ours)
    row["ratio"] = row["seconds"] / row["our_seconds"]
    row["cpu_ratio"] = row["cpu_seconds"] / row["our_cpu_seconds"]
    return row


def _call(folder: Path, python: str, arguments: list[str]) -> dict[str, Any]:
    """Runs `peer_process.py` as if it lay in the checkout; its last line is JSON."""
    command = [python, "-c", _START, str(_PROCESS), *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"--peer_python={python} cannot be run: {error.strerror}.") from error
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"The checkout {folder} does not run: {last}") from None
    if "missing" in answer:
        raise UserError(f"The checkout {folder} does not run with {python}: {answer['missing']}")
    return answer
