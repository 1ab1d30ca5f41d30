"""What a training would need on many accelerators, from its program compiled for that many devices.

    python -m experiments.predict_scaling --config=experiments/configs/align3r_vitl_512.py \\
        --hardware=v5e-256 --meshes=16x16 --pairs_per_device=1

Nothing is trained and no accelerator is needed: the step is compiled for virtual devices, once per
mesh (data x fsdp) and number of pairs per device. Read from it: the bytes of the state on a device,
temporary memory, what a device sends to others, operations. Times are bounds from data sheets:
operations / peak and bytes / bandwidth, one after the other or hidden behind each other. They are
predictions; nobody has measured them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from align3r_jax.errors import UserError
from align3r_jax.io import atomic
from align3r_jax.training import flops, meter, partitioning
from experiments import cli, compiled_program, train_settings, train_setup


@dataclasses.dataclass(frozen=True)
class Hardware:
    """devices: how many. peak: name in `meter.PUBLISHED_PEAKS`. memory: GB of a device. near: GB/s
    that a device sends to others of its block of `near_devices` (of a torus: along one axis), far:
    to all others; from data sheets."""

    devices: int
    peak: str
    memory: float
    near: float
    near_devices: int
    far: float
    torus: bool
    source: str

    def is_near(self, members: Sequence[int]) -> bool:
        """Whether the devices of a group are one block, or one line of a torus."""
        blocks = {member // self.near_devices for member in members}
        columns = {member % self.near_devices for member in members}
        return len(blocks) == 1 or (self.torus and len(columns) == 1)


# v5e: 1600 Gbit/s between chips over the two axes of a 16 x 16 torus, half of it along one axis.
# H100: NVLink 900 GB/s, half of it outgoing, among 8; 400 Gbit/s of network per GPU.
HARDWARE = {
    "v5e-256": Hardware(256, "TPU v5e", 16, 100, 16, 200, True, "TPU v5e data sheet"),
    "h100-64": Hardware(64, "NVIDIA H100", 80, 450, 8, 50, False, "H100 SXM, NDR 400 per GPU"),
}

CONFIG = config_flags.DEFINE_config_file(
    "config", "experiments/configs/align3r_vitl_512.py", "Settings of the training.",
    lock_config=True,
)  # fmt: skip
MACHINE = flags.DEFINE_enum("hardware", "v5e-256", sorted(HARDWARE), "Which accelerators.")
MESHES = flags.DEFINE_list("meshes", ["16x16"], "Meshes to compile for, data x fsdp devices.")
PAIRS = flags.DEFINE_list("pairs_per_device", ["1"], "Pairs of a step on one device.")
OUTPUT = flags.DEFINE_string("output", None, "Also write the results here as JSON.")


def main(argv: Sequence[str]) -> None:
    del argv
    machine = HARDWARE[MACHINE.value]
    jax.config.update("jax_num_cpu_devices", machine.devices)
    rows = []
    for data, fsdp in _meshes(MESHES.value, machine.devices):
        for pairs in _counts(PAIRS.value):
            rows.append(predict(CONFIG.value.to_dict(), machine, data, fsdp, pairs))
            print(table(rows[-1:]) if len(rows) == 1 else table(rows[-1:]).splitlines()[-1])
    if OUTPUT.value:
        content = {"hardware": MACHINE.value, **dataclasses.asdict(machine), "rows": rows}
        with atomic.new_file(Path(OUTPUT.value)) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())


def predict(
    values: dict[str, Any], machine: Hardware, data: int, fsdp: int, pairs: int
) -> dict[str, Any]:
    """Returns what one step needs on a mesh of data x fsdp devices with `pairs` pairs on each."""
    mesh = dict(values.get("mesh", {}), data=data, fsdp=fsdp)
    values = dict(values, batch_size=pairs * data * fsdp, mesh=mesh)
    values["optimizer"] = dict(values.get("optimizer", {}), accumulate=1)
    values["evaluate_every"] = values["images_every"] = 0
    settings = train_settings.settings_from(values)
    trainer = train_setup.make_trainer(settings)
    place = lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to)  # noqa: E731
    state = jax.tree.map(place, trainer.abstract, trainer.shardings)
    split = partitioning.batch_sharding(trainer.mesh)
    batch = train_setup.abstract_batch(settings, split)
    key = jax.eval_shape(lambda: jax.random.key(0))
    operations = flops.step_flops(trainer.step, state, batch, key) / machine.devices
    compiled = trainer.step.lower(state, batch, key).compile()
    found = compiled_program.collectives(compiled.as_text())
    memory = compiled.memory_analysis()
    near, far = (
        sum(c.moved for c in found if machine.is_near(c.members) == is_near)
        for is_near in (True, False)
    )
    peak = 1e12 * meter.PUBLISHED_PEAKS[machine.peak][settings.compute_dtype == "float32"]
    computing = operations / peak
    sending = near / (1e9 * machine.near) + far / (1e9 * machine.far)
    return {
        "mesh": [data, fsdp],
        "pairs_per_device": pairs,
        "batch_size": settings.batch_size,
        "resolution": list(settings.resolutions[0]),
        "state_gb": sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(state)) / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "tflop": operations / 1e12,
        "exchanges": compiled_program.by_kind(found),
        "sent_near_gb": near / 1e9,
        "sent_far_gb": far / 1e9,
        "compute_seconds": computing,
        "exchange_seconds": sending,
        "step_seconds": [max(computing, sending), computing + sending],
        "efficiency": [computing / max(computing, sending), computing / (computing + sending)],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the results as Markdown; two numbers are exchanges hidden and not hidden."""
    lines = [
        "| mesh | pairs per device | state GB | temporary GB | TFLOP | sent near / far GB "
        "| compute ms | exchange ms | step ms | efficiency |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["step_seconds"]
        best, worst = row["efficiency"]
        lines.append(
            f"| {row['mesh'][0]} x {row['mesh'][1]} | {row['pairs_per_device']} "
            f"| {row['state_gb']:.2f} | {row['temporary_gb']:.2f} | {row['tflop']:.2f} "
            f"| {row['sent_near_gb']:.2f} / {row['sent_far_gb']:.2f} "
            f"| {1e3 * row['compute_seconds']:.1f} | {1e3 * row['exchange_seconds']:.1f} "
            f"| {1e3 * low:.1f} to {1e3 * high:.1f} | {worst:.0%} to {best:.0%} |"
        )
    return "\n".join(lines)


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return 0
    shape = leaf.sharding.shard_shape(leaf.shape)  # type: ignore[union-attr]
    return math.prod(shape) * leaf.dtype.itemsize


def _meshes(texts: Sequence[str], devices: int) -> list[tuple[int, int]]:
    found = []
    for text in texts:
        sides = text.split("x")
        if len(sides) != 2 or not all(side.isdecimal() for side in sides):
            raise UserError(f"--meshes={text}: expected DATAxFSDP, e.g. 16x16.")
        data, fsdp = (int(side) for side in sides)
        if data * fsdp != devices:
            raise UserError(
                f"--meshes={text} is {data * fsdp} devices; --hardware={MACHINE.value} has "
                f"{devices}."
            )
        found.append((data, fsdp))
    return found


def _counts(texts: Sequence[str]) -> list[int]:
    for text in texts:
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"--pairs_per_device={text}: expected whole numbers from 1.")
    return [int(text) for text in texts]


if __name__ == "__main__":
    cli.run(main)
