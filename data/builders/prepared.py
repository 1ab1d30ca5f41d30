"""Prepared data as TensorFlow Datasets builders; TensorFlow itself is not needed.

    from data.builders import prepared

    source = prepared.builder("/data/spring_records").as_data_source(split="train")
    source[7]["depth"]                                   # (H, W) float32, see `frame_record`

`builder` opens what `experiments.prepare_data` wrote (`tfds.builder_from_directory` does as well).
`generator_class` is for those whose tooling builds data sets itself: a `GeneratorBasedBuilder`
that writes the same features from a raw download, shuffled and not resumable, as TFDS does it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align3r_jax.errors import UserError
from data.prepare import frame_record, index, resize, settings
from data.prepare.settings import Settings
from data.readers import training_sets


def builder(folder: str | Path) -> Any:
    """Returns the `tfds.core.ReadOnlyBuilder` of a prepared folder.

    Raises UserError if it was not prepared as records, or no split of it is finished.
    """
    import tensorflow_datasets as tfds

    folder = Path(folder).expanduser()
    chosen = settings.of_folder(settings.read(folder))
    if chosen is None or chosen.format != "records":
        raise UserError(f"'{folder}' holds no records; prepare it with --format=records.")
    if not index.complete_splits(folder):
        raise UserError(
            f"No split of '{folder}' is finished; run experiments.prepare_data on it again."
        )
    return tfds.builder_from_directory(folder)


@functools.cache
def generator_class() -> type:
    """Returns the builder class `Prepared(root, settings, splits=("train",), data_dir=...)`.

    root: of the raw download; settings: `data.prepare.settings.Settings`.
    """
    import tensorflow_datasets as tfds

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Frames of a training set as `data.prepare.frame_record` stores them."""

        name = "prepared"
        VERSION = tfds.core.Version(f"{settings.VERSION}.0.0")

        def __init__(
            self,
            root: str | Path,
            settings: Settings,
            splits: tuple[str, ...] = ("train",),
            **options: Any,
        ):
            self._root, self._settings, self._splits = Path(root), settings.check(), splits
            super().__init__(file_format="array_record", **options)

        def _info(self) -> Any:
            encoding = frame_record.Encoding.of(self._settings)
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{self._settings.dataset}, prepared for training.",
                features=frame_record.features(encoding),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            return {split: self._generate_examples(split) for split in self._splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            chosen = self._settings
            encoding = frame_record.Encoding.of(chosen)
            found, _ = training_sets.scenes(chosen.dataset, self._root, chosen.options(split))
            for scene in found:
                for number, name in enumerate(scene.frames):
                    frame = resize.prepare_frame(scene.load(number), chosen.size)
                    yield (
                        f"{scene.name}/{name}",
                        frame_record.example(frame, scene.name, name, number, encoding),
                    )

    return Prepared
