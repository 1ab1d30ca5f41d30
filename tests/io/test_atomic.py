"""Nothing half-written: single files and folders."""

import errno

import pytest

from align3r_jax.errors import UserError
from align3r_jax.io import atomic


def test_a_file_is_replaced_or_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    atomic.replace_file(path, b"new")
    assert path.read_bytes() == b"new"

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "replace", full)
    with pytest.raises(UserError, match="disk is full"), atomic.told_to_user(path):
        atomic.replace_file(path, b"newer")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.bin", b"new")]


def test_a_folder_that_cannot_take_its_place_gives_the_old_one_back(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.mkdir()
    (path / "old.txt").write_text("old")
    original = type(path).rename

    def fails_for_the_new_one(self, target):
        if self.suffix == ".partial":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(self, target)

    monkeypatch.setattr(type(path), "rename", fails_for_the_new_one)
    with pytest.raises(UserError, match="Permission denied"), atomic.new_folder(path) as folder:
        (folder / "new.txt").write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert [entry.name for entry in path.iterdir()] == ["old.txt"]


def test_a_file_takes_the_place_of_a_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic.replacing(path) as hidden:
        hidden.write_bytes(b"half")
        raise KeyboardInterrupt
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.bin", b"old")]
    with atomic.replacing(path) as hidden:
        hidden.write_bytes(b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.bin", b"new")]


def test_errors_of_the_content_pass_through(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic.new_folder(tmp_path / "a") as folder:
        (folder / "half").write_text("")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
