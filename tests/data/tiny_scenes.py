"""Scenes in memory with the shape of a training set; picklable, for the tests of the pipeline."""

import dataclasses

import numpy as np

from align3r_jax.errors import UserError
from data.readers.training import TrainingFrame, TrainingScene


@dataclasses.dataclass(frozen=True)
class TinyLoad:
    """Frames whose depth says which frame of which scene they are: 1 + scene + index / 100."""

    scene: int
    shape: tuple[int, int]
    prior: bool = True
    broken: tuple[int, ...] = ()

    def __call__(self, index: int) -> TrainingFrame:
        if index in self.broken:
            raise UserError(f"'{self.scene}/{index}.png' is cut short.")
        height, width = self.shape
        generator = np.random.default_rng((self.scene, index))
        image = generator.integers(0, 256, (height, width, 3), np.uint8)
        depth = np.full(self.shape, 1 + self.scene + index / 100, np.float32)
        pose = np.eye(4)
        pose[:3, 3] = (index, self.scene, 0)
        intrinsics = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
        prior = np.arange(height * width, dtype=np.float32).reshape(self.shape) + 1
        return TrainingFrame(
            image, depth, intrinsics, pose, prior_depth=prior if self.prior else None
        )


def scenes_of(name, root, options):
    """As `training_sets.scenes`: sets `a`, `b` landscape, `tall` portrait, `broken`, `given`."""
    counts = {"a": [12, 7, 9], "b": [15], "tall": [6], "broken": [12, 12], "given": [8], "one": [1]}
    if name not in counts:
        raise UserError(f"The training set '{name}' is unknown.")
    shape = (64, 40) if name == "tall" else (40, 64)
    # Alone in this scene, frame 3 cannot be read.
    broken = {"broken": (3,)}.get(name, ())
    if root == "hopeless":
        broken = tuple(range(100))
    first = 10 * sorted(counts).index(name)
    return [
        TrainingScene(
            name,
            f"s{k}_left",
            tuple(f"{index:05d}" for index in range(count)),
            TinyLoad(first + k, shape, options.prior is not None, broken if k == 0 else ()),
            np.array([[0, 4], [7, 2]]) if name == "given" else None,
        )
        for k, count in enumerate(counts[name])
    ], []
