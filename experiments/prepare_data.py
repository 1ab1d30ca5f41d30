"""A raw training set, once: frames of all scenes at training size in files that load fast.

    python -m experiments.prepare_data --dataset=spring --root=/raw/spring --output=/data/spring
    python -m experiments.prepare_data --dataset=folder --root=/my/scenes --check

`--format=records` writes ArrayRecord shards, which training reads as the set `records` and
TensorFlow Datasets as well; `--format=processed` writes the four files per frame of the published
preparation (docs/training_data.md). An interrupted run, killed or not, goes on with the same
command and ends with the same files. Frames and scenes that cannot be used are left out and listed
with the reason in OUTPUT/manifest.json. `--check` lists scenes and problems and writes nothing;
its exit code is 1 if a folder of your own has errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from align3r_jax.errors import UserError
from data.prepare import run, settings, work
from data.readers import training, training_sets
from experiments import cli

DATASET = flags.DEFINE_string(
    "dataset", None, f"What is read: {', '.join(training_sets.TRAINING_SETS)}.", required=True
)
ROOT = flags.DEFINE_string("root", None, "Folder of the download.", required=True)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder to write or to continue; needed unless --check."
)
SPLIT = flags.DEFINE_list("split", ["train"], "Splits: train, test, or both (train,test).")
VARIANT = flags.DEFINE_string("variant", None, "Only this part of the set, where it has parts.")
PARITY = flags.DEFINE_bool(
    "parity", False, "Decode as the published preparation, mistakes included."
)
FORMAT = flags.DEFINE_enum("format", "records", settings.FORMATS, "What is written.")
SIZE = flags.DEFINE_integer(
    "size", 512, "Long side of a 4:3 picture in pixels; 0: frames as they are.", lower_bound=0
)
IMAGE = flags.DEFINE_enum("image", "jpeg", settings.IMAGES, "Pictures of records.")
QUALITY = flags.DEFINE_integer(
    "quality",
    75,
    "Of JPEG, 1 to 100, no unit; 75 is that of the published data.",
    lower_bound=1,
    upper_bound=100,
)
DEPTH = flags.DEFINE_enum(
    "depth", "float32", settings.DEPTHS,
    "Depth of records: exact, or 16 bits of its logarithm (relative error below 1e-4).",
)  # fmt: skip
PRIOR = flags.DEFINE_string(
    "prior", None, "Also keep the depth priors of this name that lie beside the pictures "
    "(experiments.estimate_priors --layout=beside): depthpro, depthanything, depthmetric.",
)  # fmt: skip
SHARD_MB = flags.DEFINE_float("shard_mb", 256, "Size of a shard of records in MiB.")
WORKERS = flags.DEFINE_integer(
    "workers", None, "Processes; 0: this one alone. Default: one per core.", lower_bound=0
)
ON_ERROR = flags.DEFINE_enum(
    "on_error", "drop", ["drop", "stop"], "What a frame that cannot be read does."
)
CHECK = flags.DEFINE_bool("check", False, "List scenes and problems; write nothing.")

_OF_RECORDS = ("image", "depth", "shard_mb")


def main(argv: Sequence[str]) -> int:
    del argv
    unknown = set(SPLIT.value) - set(training.SPLITS)
    if unknown or not SPLIT.value:
        raise UserError(
            f"--split={','.join(SPLIT.value)}: expected {' or '.join(training.SPLITS)}, or both."
        )
    root = Path(ROOT.value).expanduser()
    if CHECK.value:
        return _check(root)
    output = _output(root)
    _refuse_ignored_flags()
    for split in dict.fromkeys(SPLIT.value):
        _prepare(split, root, output)
    return 0


def _output(root: Path) -> Path:
    if OUTPUT.value is None:
        raise UserError("--output=FOLDER is missing: where should the prepared data go?")
    output = Path(OUTPUT.value).expanduser()
    if output.resolve() == root.resolve() or root.resolve() in output.resolve().parents:
        raise UserError(
            f"--output={output} lies within --root={root}: name a folder outside of the raw data."
        )
    return output


def _refuse_ignored_flags() -> None:
    ignored = [
        name for name in _OF_RECORDS if FORMAT.value == "processed" and flags.FLAGS[name].present
    ]
    if IMAGE.value == "png" and flags.FLAGS["quality"].present:
        ignored.append("quality")
    if ignored:
        named = ", ".join(f"--{name}" for name in ignored)
        raise UserError(
            f"{named} has no effect with --format={FORMAT.value} --image={IMAGE.value}; leave "
            "it out."
        )


def _prepare(split: str, root: Path, output: Path) -> None:
    options = training.TrainingOptions(split, PRIOR.value, PARITY.value, VARIANT.value)
    scenes, skipped = training_sets.scenes(DATASET.value, root, options)
    # What was prepared before keeps the name of its set.
    dataset = scenes[0].dataset if DATASET.value == "records" else DATASET.value
    chosen = settings.Settings(
        dataset, FORMAT.value, SIZE.value, IMAGE.value, QUALITY.value, DEPTH.value, PRIOR.value,
        VARIANT.value, PARITY.value, SHARD_MB.value,
    ).check()  # fmt: skip
    workers = work.usable_cores() if WORKERS.value is None else WORKERS.value
    total = sum(scene.num_frames for scene in scenes)
    with tqdm(total=total, desc=f"{chosen.dataset} {split}", unit="frame") as bar:
        report = run.prepare(
            chosen, split, scenes, skipped, output, source=str(root), workers=workers,
            on_error=ON_ERROR.value, progress=bar.update,
        )  # fmt: skip
    print(
        f"{split}: {report.scenes} scenes, {report.frames} frames, {report.bytes / 2**20:.1f} MiB; "
        f"{len(report.skipped)} scenes skipped, {len(report.dropped)} frames dropped; "
        f"see {output / run.MANIFEST}."
    )


def _check(root: Path) -> int:
    """Lists scenes; returns 1 if a folder of one's own has errors."""
    if DATASET.value == "folder":
        from data.readers import own_folder

        problems = own_folder.validate(root)
        for problem in problems:
            print(problem)
        errors = sum(not problem.warning for problem in problems)
        print(f"{errors} errors, {len(problems) - errors} warnings in {root}.")
        if errors:
            return 1
    for split in dict.fromkeys(SPLIT.value):
        options = training.TrainingOptions(split, PRIOR.value, PARITY.value, VARIANT.value)
        scenes, skipped = training_sets.scenes(DATASET.value, root, options)
        for scene in scenes:
            print(f"{split}  {scene.name}  {scene.num_frames} frames")
        for left_out in skipped:
            print(f"{split}  {left_out.name}  skipped: {left_out.reason}")
        frames = sum(scene.num_frames for scene in scenes)
        print(f"{split}: {len(scenes)} scenes, {frames} frames, {len(skipped)} scenes skipped.")
    return 0


if __name__ == "__main__":
    cli.run(main)
