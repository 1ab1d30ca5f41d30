"""The cache computes once, survives damage and interruption, and tells inputs apart."""

import numpy as np
import pytest

from align3r_jax.priors import cache

ARRAYS = {"depth": np.arange(6, dtype=np.float32).reshape(2, 3), "flag": np.array(True)}


class _Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS


def _same(arrays) -> bool:
    return set(arrays) == set(ARRAYS) and all(
        arrays[k].dtype == ARRAYS[k].dtype and (arrays[k] == ARRAYS[k]).all() for k in ARRAYS
    )


def test_computes_once_per_key(tmp_path):
    compute = _Counter()
    folder = tmp_path / "deep" / "cache"
    for _ in range(3):
        assert _same(cache.get_or_compute(folder, "a", compute))
    assert compute.calls == 1
    cache.get_or_compute(folder, "b", compute)
    assert compute.calls == 2
    assert sorted(path.name for path in folder.iterdir()) == ["a.npz", "b.npz"]
    cache.get_or_compute(None, "a", compute)
    assert compute.calls == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_damaged_entries_are_made_again(tmp_path, damage):
    compute = _Counter()
    cache.get_or_compute(tmp_path, "a", compute)
    data = (tmp_path / "a.npz").read_bytes()
    middle = data.index(ARRAYS["depth"].tobytes()) + 9
    broken = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "flipped": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
        "text": b"not an archive",
    }[damage]
    (tmp_path / "a.npz").write_bytes(broken)
    assert _same(cache.get_or_compute(tmp_path, "a", compute))
    assert compute.calls == 2
    assert _same(cache.get_or_compute(tmp_path, "a", compute))
    assert compute.calls == 2


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_compute(tmp_path, "a", _Counter())
    assert not list(tmp_path.iterdir())


def test_an_unwritable_cache_costs_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert _same(cache.get_or_compute(tmp_path / "file", "a", _Counter()))
    assert "was not written" in caplog.text


def test_keys_tell_contents_apart():
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    changed = array.copy()
    changed[1, 1] += 1
    parts = [
        ("x", array),
        ("y", array),
        ("x", changed),
        ("x", array.reshape(4, 3)),
        ("x", array.view(np.int8)),
        ("x", array, None),
        ("xx", array),
        ("x", "x", array),
        (1, array),
        (True, array),
        ("1", array),
    ]
    keys = [cache.content_key(*part) for part in parts]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache.content_key("x", np.asfortranarray(array))
