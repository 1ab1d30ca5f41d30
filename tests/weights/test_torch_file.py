"""PyTorch files without PyTorch: contents, damage, and files that try to run code."""

import argparse
import collections
import itertools
import struct
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.weights import torch_file
from tests.weights import torch_writer
from tests.weights.torch_writer import Raw, View, name, pickled, text, write_legacy, write_zip

WRITERS = {"zip": write_zip, "legacy": write_legacy}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def checkpoint():
    """A training checkpoint as the reference code lays it out, and the arrays inside it."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(48).astype(np.float32)
    arrays = {dtype: rng.integers(0, 2, 5).astype(dtype) for dtype in torch_writer.KINDS}
    model = collections.OrderedDict(
        whole=View(base, 0, (6, 8), (8, 1)),
        transposed=View(base, 0, (8, 6), (1, 8)),
        sliced=View(base, 9, (3, 4), (8, 2)),
        repeated=View(base, 1, (3, 2), (0, 0)),
        scalar=View(base, 7, (), ()),
        empty=View(base, 48, (0, 4), (4, 1)),
        one=View(base, 17, (1, 1), (999, 1)),
    )
    grid = base.reshape(6, 8)
    expected = {
        "whole": grid,
        "transposed": grid.T,
        "sliced": grid[1:4, 1::2],
        "repeated": np.full((3, 2), base[1]),
        "scalar": base[7],
        "empty": np.zeros((0, 4)),
        "one": grid[2:3, 1:2],
    }
    content = {
        "model": model,
        "args": argparse.Namespace(model="Net(x=inf)", lr=1e-4, sizes=[(512, 288), None]),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": base[:4]}}, "param_groups": [{"lr": 1}]},
        "scaler": {"scale": 65536.0},
        "epoch": 7,
        "best_so_far": np.float64(0.25),
        "dtypes": {str(dtype): array for dtype, array in arrays.items()},
    }
    return content, expected, arrays


def test_contents(write, tmp_path):
    content, expected, arrays = checkpoint()
    got = torch_file.read_torch(write(tmp_path / "a.pth", content))
    assert list(got["model"]) == list(expected)
    for key, array in expected.items():
        assert got["model"][key].shape == np.shape(array), key
        np.testing.assert_array_equal(got["model"][key], array)
    for dtype, array in arrays.items():
        assert got["dtypes"][str(dtype)].dtype == dtype
        np.testing.assert_array_equal(got["dtypes"][str(dtype)], array)
    assert np.shares_memory(got["model"]["whole"], got["model"]["sliced"])
    assert got["args"] == content["args"]
    assert got["best_so_far"] == 0.25
    assert type(got["best_so_far"]) is np.float64
    state = got["optimizer"]["state"][0]
    np.testing.assert_array_equal(state["exp_avg"], content["optimizer"]["state"][0]["exp_avg"])
    assert (state["step"], got["epoch"], got["scaler"]) == (3, 7, {"scale": 65536.0})


def test_bfloat16_values(write, tmp_path):
    values = np.array([1.5, -3.25e9, 1e-3], ml_dtypes.bfloat16)
    got = torch_file.read_torch(write(tmp_path / "a.pth", {"x": values}))["x"]
    np.testing.assert_array_equal(got.astype(np.float32), values.astype(np.float32))


def test_skipped_entries_are_not_read(tmp_path):
    path = write_zip(tmp_path / "a.pth", {"model": np.ones(3, "f4"), "optimizer": np.ones(4, "f4")})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for member in old.namelist():
            if member != "archive/data/1":
                new.writestr(member, old.read(member))
    assert set(torch_file.read_torch(tmp_path / "b.pth", skip=("optimizer",))) == {"model"}
    with pytest.raises(UserError, match=r"lacks archive/data/1"):
        torch_file.read_torch(tmp_path / "b.pth")


def hostile_pickles(target):
    """Opcodes that would create `target` if anything of them were run."""
    command = text(f"touch {target}")
    opened = b"(" + text(str(target)) + text("w") + b"t"
    return {
        "os.system": name("os", "system") + b"(" + command + b"tR",
        "posix.system": text("posix") + text("system") + b"\x93(" + command + b"tR",
        "builtins.open": name("builtins", "open") + opened + b"R",
        "builtins.getattr": name("builtins", "getattr") + b"(" + command + b"tR",
        "subprocess.Popen": name("subprocess", "Popen") + b"(" + command + b"t\x81",
        "collections.OrderedDict.__init__": name("collections", "OrderedDict.__init__"),
        "torch.load": name("torch", "load") + opened + b"R",
        "torch.nn.modules.linear.Linear": name("torch.nn.modules.linear", "Linear") + b")\x81",
        "INST": b"(" + command + b"ios\nsystem\n",
        "OBJ": b"(" + name("collections", "OrderedDict") + command + b"o",
        "EXT1": b"\x82\x01",
        "NEXT_BUFFER": b"\x97",
        # Nothing but entries of the table can be called, and only those that build something.
        "calls something": text("os.system") + b"(" + command + b"tR",
        "calls something that": name("torch", "FloatStorage") + b"(" + command + b"tR",
    }


def test_hostile_pickles_are_refused_by_name_and_run_nothing(tmp_path):
    target = tmp_path / "touched"
    for (expected, opcodes), write in itertools.product(
        hostile_pickles(target).items(), WRITERS.values()
    ):
        for content in (Raw(opcodes), {"model": {"a": np.ones(2, "f4"), "b": [Raw(opcodes)]}}):
            path = write(tmp_path / "evil.pth", content)
            with pytest.raises(UserError) as raised:
                torch_file.read_torch(path)
            assert "evil.pth" in str(raised.value)
            assert expected in str(raised.value)
    assert not target.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        pickled(1)[2:-1] + b"}b",  # attributes of a number
        b"](" + text("x") + b"u",  # items of a list
        b"}a",  # append without an item
        b"t",  # tuple without a mark
        b"h\x05",  # a memo that was never filled
        b"}(]K\x01u",  # a list as a key
        b"}((K\x01tK\x01u",  # a tuple as a key: nested ones take exponential time to hash
        name("argparse", "Namespace") + b")\x81K\x01b",
        name("torch._utils", "_rebuild_tensor_v2") + b"(K\x01K\x01tR",
        name("numpy", "dtype") + b"(" + text("O8") + b"tR",
        name("_codecs", "encode") + b"(" + text("x" * 99) + text("latin1") + b"tR",
        b"X" + struct.pack("<I", 2**31) + b"short",
        b"\x8e" + struct.pack("<Q", 2**40) + b"short",  # 1 TB of bytes declared
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"1",
        text("x") + b"Q",  # a persistent id that is no storage
    ],
)
def test_malformed_pickles_give_a_sentence(write, tmp_path, opcodes):
    with pytest.raises(UserError, match="malformed or truncated pickle"):
        torch_file.read_torch(write(tmp_path / "a.pth", Raw(opcodes)))


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (View(np.ones(4, "f4"), 0, (5,), (1,)), "leaves its storage"),
        (View(np.ones(4, "f4"), 1, (2, 2), (2, 1)), "leaves its storage"),
        (View(np.ones(4, "f4"), 3, (2,), (-1,)), "natural numbers"),
        (View(np.ones(4, "f4"), -1, (2,), (1,)), "natural numbers"),
        (View(np.ones(4, "f4"), 0, (2**40, 2**40), (0, 0)), "repeated"),
        (View(np.ones(4, "f4"), 0, (0, 2**70), (0, 0)), "repeated"),
        (View(np.ones(4, "f4"), 0, (1,) * 17, (0,) * 17), "inconsistent"),
        (View(np.ones(4, "f4"), 0, (2,), (1, 1)), "inconsistent"),
        (View(np.ones(4, "f4"), 0, (5,), (1,), declared=10**12), "truncated or damaged"),
    ],
)
def test_tensors_stay_inside_their_storage(write, tmp_path, view, message):
    with pytest.raises(UserError, match=message):
        torch_file.read_torch(write(tmp_path / "a.pth", {"x": view}))


def test_bombs_stay_small(tmp_path):
    start = time.monotonic()
    memo = b"]r\xff\xff\xff\x7f"  # stored under index 2**31 - 1
    assert torch_file.read_torch(write_zip(tmp_path / "a.pth", Raw(memo))) == []
    # Each list holds the previous one twice: 2**40 paths to the first.
    shared = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(40))
    innermost = torch_file.read_torch(write_zip(tmp_path / "b.pth", Raw(shared)))
    for _ in range(40):
        assert innermost[0] is innermost[1]
        innermost = innermost[0]
    assert innermost == []
    with pytest.raises(UserError, match="nests containers deeper"):
        torch_file.read_torch(write_zip(tmp_path / "c.pth", Raw(b"]" * 99 + b"a" * 98)))
    with pytest.raises(UserError, match="nests containers deeper"):
        torch_file.read_torch(write_zip(tmp_path / "d.pth", Raw(b"N" + b"\x85" * 10**5)))
    assert time.monotonic() - start < 20


def test_every_truncation_gives_a_sentence(write, tmp_path):
    content, _, _ = checkpoint()
    data = write(tmp_path / "whole.pth", content).read_bytes()
    path = tmp_path / "cut.pth"
    for size in (*range(0, len(data), 61), len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"cut\.pth"):
            torch_file.read_torch(path)


def test_damaged_numbers_are_noticed(tmp_path):
    path = write_zip(tmp_path / "a.pth", {"x": np.arange(100, dtype="f4")})
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(50).tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        torch_file.read_torch(path)


def test_random_damage_never_escapes(write, tmp_path):
    """Any exception but UserError fails this test."""
    content, _, _ = checkpoint()
    data = write(tmp_path / "a.pth", content).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), rng.integers(1, 6)):
            damaged[position] = rng.integers(256)
        (tmp_path / "b.pth").write_bytes(damaged)
        try:
            torch_file.read_torch(tmp_path / "b.pth")
        except UserError:
            refused += 1
    assert refused > 50


def test_other_files_are_recognised(tmp_path):
    def refused(data: bytes) -> str:
        path = tmp_path / "x.pth"
        path.write_bytes(data)
        with pytest.raises(UserError) as raised:
            torch_file.read_torch(path)
        return str(raised.value)

    assert "empty" in refused(b"")
    assert "Git LFS" in refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    assert "web page" in refused(b"<!DOCTYPE html><html>")
    assert "starts with b'GIF89a" in refused(b"GIF89a........")
    assert "magic number" in refused(pickled({"a": 1}))
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    assert "no PyTorch file" in refused((tmp_path / "a.npz").read_bytes())
    script = write_zip(tmp_path / "script.pt", {"x": np.ones(3, "f4")})
    with zipfile.ZipFile(script, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    assert "TorchScript" in refused(script.read_bytes())
    packed = write_zip(tmp_path / "p.pth", {"x": np.ones(3, "f4")}, zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(packed.read_bytes())
    with pytest.raises(UserError, match="no file"):
        torch_file.read_torch(tmp_path / "absent.pth")
