"""Exchanges of a compiled program: found, sized, counted through loops."""

import subprocess
import sys

import pytest

from experiments import compiled_program

# A step on a 2 x 4 mesh whose weights are split over 4: each is gathered once, its gradient summed
# over all; three steps in a loop. Written by a program of its own, which has eight devices.
_PROGRAM = """
import jax, sys
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
split, rows = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P(("data", "fsdp")))
def step(w, x):
    grads = jax.grad(lambda w: jnp.mean(jnp.tanh(x @ w["a"]) ** 2) + jnp.mean((x @ w["b"]) ** 2))(w)
    return jax.tree.map(lambda p, g: p - g, w, grads)
def loop(w, x):
    return jax.lax.scan(lambda w, _: (step(w, x), None), w, None, length=3)[0]
w = {k: jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=split) for k in "ab"}
x = jax.ShapeDtypeStruct((4096, 256), jnp.float32, sharding=rows)
out = {k: split for k in "ab"}
for name, f in (("once", step), ("three", loop)):
    open(f"{sys.argv[1]}/{name}.hlo", "w").write(
        jax.jit(f, out_shardings=out).lower(w, x).compile().as_text())
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hlo")
    subprocess.run([sys.executable, "-c", _PROGRAM, str(folder)], check=True, timeout=300)
    return {path.stem: path.read_text() for path in folder.glob("*.hlo")}


def test_weights_are_gathered_and_gradients_summed(programs):
    found = compiled_program.collectives(programs["once"])
    weight = 4 * 256 * 512
    gathered = [c for c in found if c.kind == "all-gather"]
    assert sum(c.bytes for c in gathered) == 2 * weight
    assert all(c.members == (0, 1, 2, 3) for c in gathered)
    assert {c.members for c in found if c.kind == "all-reduce"} == {(0, 1, 2, 3), (0, 4)}
    summed = sum(c.bytes * (c.group - 1) / c.group for c in found if c.kind == "all-reduce")
    # Over 4 devices at full size, then over 2 what each keeps (or the other way round).
    assert summed == pytest.approx(2 * weight * 3 / 4 + 2 * weight / 4 / 2, rel=0.5)
    table = compiled_program.by_kind(found)
    assert table["all-gather"]["bytes"] == pytest.approx(2 * weight * 3 / 4)


def test_a_loop_repeats_its_exchanges(programs):
    once = compiled_program.by_kind(compiled_program.collectives(programs["once"]))
    three = compiled_program.by_kind(compiled_program.collectives(programs["three"]))
    for kind in ("all-gather", "all-reduce"):
        assert three[kind]["count"] == 3 * once[kind]["count"]
        assert three[kind]["bytes"] == pytest.approx(3 * once[kind]["bytes"])


def test_long_tuples_listed_groups_and_permutations():
    text = """
ENTRY %main (p: f32[4]) -> f32[4] {
  %all-reduce.1 = (f32[8]{0}, f32[8]{0}, /*index=2*/bf16[8,2]{1,0}) all-reduce(%a, %b, %c), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %collective-permute.1 = f32[16]{0} collective-permute(%d), source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501
    summed, moved = compiled_program.collectives(text)
    assert (summed.bytes, summed.members, summed.moved) == (96, (0, 1, 2, 3), 144.0)
    assert (moved.kind, moved.moved) == ("collective-permute", 64.0)


def test_groups_that_are_not_understood_are_not_guessed():
    with pytest.raises(ValueError, match="replica groups"):
        compiled_program.collectives("  %all-reduce.1 = f32[8]{0} all-reduce(%a), replica_groups=?")
