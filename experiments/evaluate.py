"""Scores of a method on a data set by the protocol of a paper, published numbers beside them.

    python -m experiments.evaluate --task=video_depth --dataset=sintel --root=data/sintel \
        --protocol=align3r_paper --weights=weights/align3r --output=results/sintel
    python -m experiments.evaluate --task=camera_pose --dataset=tum --root=data/tum \
        --protocol=ours --predictions=their_results --output=results/theirs
    python -m experiments.evaluate --task=motion --dataset=procedural --protocol=ours \
        --output=results/procedural

Writes OUTPUT/sequences/NAME.json (finished ones are not computed again), plots/, summary.json and
table.{md,tex,html}. Sequences that fail are named in the table, the others go on; the exit code
is then 1. --devices=all deals the sequences out to the devices of the machine; several processes
(on several machines with one file system) share them with --shard=1/4 ... --shard=4/4, and
whichever is last finds all results and writes the whole table.
docs/evaluation.md says what the protocols are and how to give files of one's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from align3r_jax.errors import UserError
from data import settings_text
from experiments import cli

_TASKS = ["video_depth", "single_depth", "camera_pose", "motion"]
_PROTOCOLS = ["align3r_paper", "align3r_code", "monst3r", "depthcrafter", "ours"]
FAILED = 1  # exit code when sequences failed

TASK = flags.DEFINE_enum("task", None, _TASKS, "What is evaluated.", required=True)
DATASET = flags.DEFINE_string(
    "dataset", None, "sintel, bonn, tum, kitti, nyu, scannet, davis, pointodyssey, flyingthings, "
    "or procedural, which needs no files.", required=True,
)  # fmt: skip
ROOT = flags.DEFINE_string(
    "root", None, "Folder of the data set (data/README.md); needed by all but procedural."
)
PROTOCOL = flags.DEFINE_enum("protocol", "ours", _PROTOCOLS, "Frames, fits, metrics, settings.")
RUNNING = flags.DEFINE_enum(
    "running", None, _PROTOCOLS, "Settings of the method from this protocol instead; frames, fits "
    "and metrics stay those of --protocol.",
)  # fmt: skip
OUTPUT = flags.DEFINE_string("output", None, "Folder of results; finished ones are kept.",
                             required=True)  # fmt: skip
PREDICTIONS = flags.DEFINE_string(
    "predictions", None, "Judge files instead of running anything: DIR/SEQUENCE/depth/FRAME.npy, "
    "pred_traj.txt, dynamic_mask/ (docs/evaluation.md).",
)  # fmt: skip
QUATERNIONS = flags.DEFINE_enum(
    "quaternions", "xyzw", ["xyzw", "wxyz"], "Their order in trajectories of --predictions; the "
    "reference implementations write wxyz.",
)  # fmt: skip
METHOD = flags.DEFINE_string(
    "method", None, "Name of our row in the table; default: by its weights."
)
WEIGHTS = flags.DEFINE_string(
    "weights", None, "Pairwise network, as in experiments.reconstruct; default: flow predictor."
)
PRIOR = flags.DEFINE_string(
    "prior", None, "Depth prior instead of the protocol's: as in experiments.reconstruct, or "
    "stored:NAME for the files that lie with the data set (depthpro, depthanything, depthmetric).",
)  # fmt: skip
PRIOR_WEIGHTS = flags.DEFINE_string(
    "prior_weights", None, "Its file or folder; default: looked for by name."
)
FLOW = flags.DEFINE_string("flow", None, "Optical flow instead of the protocol's.")
FLOW_WEIGHTS = flags.DEFINE_string(
    "flow_weights", None, "Its file or folder; default: looked for by name."
)
SEQUENCES = flags.DEFINE_list("sequences", None, "Only these; default: the protocol's list.")
MAX_SEQUENCES = flags.DEFINE_integer("max_sequences", 0, "Only so many sequences; 0: all.",
                                     lower_bound=0)  # fmt: skip
START = flags.DEFINE_integer("start", None, "First frame instead of the protocol's.",
                             lower_bound=0)  # fmt: skip
STRIDE = flags.DEFINE_integer("stride", None, "Every n-th frame instead.", lower_bound=1)
MAX_FRAMES = flags.DEFINE_integer("max_frames", None, "Frames of a sequence instead; 0: all.",
                                  lower_bound=0)  # fmt: skip
SIZE = flags.DEFINE_integer("size", None, "Working size in pixels instead of the protocol's.",
                            lower_bound=32)  # fmt: skip
ITERATIONS = flags.DEFINE_integer("iterations", None, "Iterations of the alignment, instead.",
                                  lower_bound=1)  # fmt: skip
ASSOCIATION = flags.DEFINE_enum(
    "association", None, ["stamps", "position", "reference_rows"], "Of Bonn and TUM, instead."
)
DEVICES = flags.DEFINE_string(
    "devices", "1", "How many devices of this process share the sequences, a thread each; or all."
)
SHARD = flags.DEFINE_string("shard", "1/1", "k/n: of n processes this is the k-th, from 1.")
PLOTS = flags.DEFINE_bool("plots", True, "Draw error maps, delta curves and paths.")
KEEP = flags.DEFINE_bool("keep_predictions", False, "Write what was predicted to predictions/.")
CACHE = flags.DEFINE_string(
    "cache_dir", None, "Where depth priors are kept between runs; default: the user's cache."
)


def departures() -> dict[str, Any]:
    """Returns the flags that depart from the protocol, name -> value; they stand in the table."""
    given = (
        RUNNING, PRIOR, FLOW, SEQUENCES, MAX_SEQUENCES, START, STRIDE, MAX_FRAMES, SIZE, ITERATIONS,
        ASSOCIATION,
    )  # fmt: skip
    return {flag.name: flag.value for flag in given if flag.value not in (None, 0)}


def protocol_from_flags() -> Any:
    """Returns the protocol with what the flags change of it."""
    from align3r_jax.evaluation import protocols

    protocol = protocols.get(PROTOCOL.value, TASK.value, DATASET.value, PRIOR.value)
    if RUNNING.value is not None:
        other = protocols.get(RUNNING.value, TASK.value, DATASET.value, PRIOR.value)
        protocol = dataclasses.replace(protocol, running=other.running, exceptions=other.exceptions)
    reading = {"start": START, "stride": STRIDE, "max_frames": MAX_FRAMES,
               "association": ASSOCIATION}  # fmt: skip
    changed: dict[str, Any] = {
        n: flag.value for n, flag in reading.items() if flag.value is not None
    }
    if SEQUENCES.value:
        changed["sequences"] = tuple(SEQUENCES.value)
    method: dict[str, Any] = {"flow": {}, "alignment": {}}
    if PRIOR.value is not None:
        # Which network made stored files does not matter once they are there.
        method["prior"] = "auto" if PRIOR.value.startswith("stored:") else PRIOR.value
    if PRIOR_WEIGHTS.value is not None:
        method["prior_weights"] = PRIOR_WEIGHTS.value
    if FLOW.value is not None:
        method["flow"]["source"] = FLOW.value
    if FLOW_WEIGHTS.value is not None:
        method["flow"]["weights"] = FLOW_WEIGHTS.value
    if ITERATIONS.value is not None:
        method["alignment"]["iterations"] = ITERATIONS.value
    running: dict[str, Any] = {"reconstruct": method}
    if SIZE.value is not None:
        running["size"] = SIZE.value
    return protocols.replaced(protocol, {"reading": changed, "running": running})


def open_networks(protocol: Any) -> Any:
    """Returns the networks that the settings name; none where only files are judged."""
    import align3r_jax
    from align3r_jax.evaluation import methods
    from align3r_jax.io import user_folder
    from align3r_jax.priors import sources

    if PREDICTIONS.value is not None:
        unused = [flag.name for flag in (WEIGHTS, PRIOR, PRIOR_WEIGHTS, FLOW, FLOW_WEIGHTS)
                  if flag.value is not None]  # fmt: skip
        if unused:
            raise UserError(
                f"--predictions judges files and runs no network; drop --{', --'.join(unused)}."
            )
        return methods.Networks()
    settings = protocol.running.reconstruct
    stored = PRIOR.value is not None and PRIOR.value.startswith("stored:")
    if settings.predictor == "network" and WEIGHTS.value is None and TASK.value != "single_depth":
        raise UserError(
            f"--protocol={PROTOCOL.value} runs a pairwise network: give --weights=..., or judge "
            "files with --predictions=DIR, or run our defaults by its rules with --running=ours."
        )
    return methods.Networks(
        model=align3r_jax.load(WEIGHTS.value) if WEIGHTS.value else None,
        prior=None if stored else sources.open_prior(settings),
        flow=sources.open_flow(settings.flow) if TASK.value != "single_depth" else None,
        cache_dir=CACHE.value or str(user_folder.cache_folder("priors")),
    )


def sequence_openers(protocol: Any) -> list[tuple[str, Callable[[], Any]]]:
    """Returns (name, function that reads the sequence) of all that the protocol evaluates."""
    from data.procedural import sequences as procedural
    from data.readers import datasets
    from data.readers.sequence import ReaderOptions

    options = ReaderOptions(**dataclasses.asdict(protocol.reading))
    if DATASET.value == procedural.NAME:
        return [(n, lambda n=n: procedural.render(n, options)) for n in procedural.names(options)]
    if ROOT.value is None:
        if DATASET.value not in datasets.DATASETS:
            known = (*datasets.DATASETS, procedural.NAME)
            text = settings_text.unknown(f"data set '{DATASET.value}'", DATASET.value, known)
            raise UserError(text)
        raise UserError(f"--root=DIR is needed: the folder of {DATASET.value} (data/README.md).")
    names = datasets.sequence_names(DATASET.value, ROOT.value, TASK.value, options)
    arguments = (DATASET.value, ROOT.value)
    return [
        (n, lambda n=n: datasets.read_sequence(*arguments, n, TASK.value, options)) for n in names
    ]


def sequences_of_papers() -> tuple[str, ...]:
    """Returns what published numbers of the task are means over; () if no fixed list is known."""
    from data.readers import datasets

    reader = datasets.DATASETS.get(DATASET.value)
    listed = reader.lists.get(reader.list_name(TASK.value), ()) if reader else ()
    return listed if isinstance(listed, tuple) else ()


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (k, n) of "k/n", 1 <= k <= n. Raises UserError."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UserError(f"--shard={text}: expected k/n with 1 <= k <= n, such as 1/4.")
    return int(first), int(second)


def main(argv: Sequence[str]) -> int:
    del argv
    index, shards = parse_shard(SHARD.value)
    from experiments import devices as devices_lib
    from experiments import evaluation_report, evaluation_run

    devices = devices_lib.chosen(DEVICES.value)

    protocol = protocol_from_flags()
    stored = (PRIOR.value or "").partition(":")
    job = evaluation_run.Job(
        task=TASK.value,
        dataset=DATASET.value,
        protocol_name=PROTOCOL.value,
        protocol=protocol,
        networks=open_networks(protocol),
        output=Path(OUTPUT.value),
        predictions=Path(PREDICTIONS.value) if PREDICTIONS.value else None,
        scalar_first=QUATERNIONS.value == "wxyz",
        plots=PLOTS.value,
        keep_predictions=KEEP.value,
        stored_prior=stored[2] if stored[0] == "stored" else "",
    )
    if job.predictions is not None and not job.predictions.is_dir():
        raise UserError(f"--predictions={job.predictions}: this folder does not exist.")
    openers = sequence_openers(protocol)[: MAX_SEQUENCES.value or None]
    records: dict[str, dict[str, Any]] = {}
    failed = False
    mine = openers[index - 1 :: shards]
    done = evaluation_run.kept_or_evaluated_on(devices, job, mine)
    for name, record in tqdm(done, desc="sequences", total=len(mine)):
        records[name] = record
        if "failed" in record:
            failed = True
            tqdm.write(f"{name}: failed: {record['failed']}")
    for name, _ in openers:  # of other processes, as far as they are
        if name not in records and (record := evaluation_run.recorded(job, name)) is not None:
            records[name] = record
    ordered = {name: records[name] for name, _ in openers if name in records}
    missing = [name for name, _ in openers if name not in records]
    text = evaluation_report.write(
        job, ordered, missing, departures(), METHOD.value, sequences_of_papers()
    )
    print(f"\n{text}\nWritten to {job.output}: table.md, table.tex, table.html, summary.json")
    return FAILED if failed else 0


if __name__ == "__main__":
    cli.run(main)
