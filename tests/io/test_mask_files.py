"""Labels of a user's masks: values, sizes, names."""

import numpy as np
import pytest
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import mask_files
from align3r_jax.structs import WorkingSize

SIZE = WorkingSize(original=(96, 128), resized=(48, 64), crop=(8, 0), working=(32, 64))
LABELS = np.zeros((96, 128), np.uint8)
LABELS[:, 64:] = mask_files.DYNAMIC
LABELS[60:] = mask_files.IGNORE


def test_grey_and_palette_mean_the_same(tmp_path):
    Image.fromarray(np.array([0, 255, 128], np.uint8)[LABELS]).save(tmp_path / "a.png")
    palette = Image.fromarray(LABELS, mode="P")
    palette.putpalette([0, 0, 0, 255, 255, 255, 9, 9, 9])
    palette.save(tmp_path / "b_mask.png")
    masks = mask_files.read_mask_folder(tmp_path, ["b", "c", "a"], SIZE)
    labels = masks.labels
    assert "2 of 3" in masks.notes[0] and labels.shape == (3, 32, 64)
    # Original row 60 is row 30 after the resize and 22 after the crop.
    for t in (0, 2):
        assert (labels[t, 22:] == mask_files.IGNORE).all()
        assert (labels[t, :22, 32:] == mask_files.DYNAMIC).all()
        assert (labels[t, :22, :32] == mask_files.STATIC).all()
    assert (labels[1] == mask_files.UNKNOWN).all()


def test_what_is_no_mask_gets_a_sentence(tmp_path):
    cases = {
        "colour": (np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8), "colour"),
        "indices": (LABELS, "palette"),
    }
    for name, (array, word) in cases.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        with pytest.raises(UserError, match=word):
            mask_files.read_labels(tmp_path / f"{name}.png")
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(tmp_path / "square.png")
    with pytest.raises(UserError, match="proportions"):
        mask_files.read_mask_folder(tmp_path, ["square"], SIZE)
    with pytest.raises(UserError, match="none of them named"):
        mask_files.read_mask_folder(tmp_path, ["f1", "f2"], SIZE)
