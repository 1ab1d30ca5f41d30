"""Converts official weights for fast, checked, sharded loading, or back to the official names.

    python -m experiments.convert_weights --input=FILE_OR_DIR --output=DIR [--dtype=bfloat16]
    python -m experiments.convert_weights --input=DIR --output=FILE.safetensors --format=safetensors

Input: an official `.pth`, `.pt` or `.safetensors` file, a hub folder, a converted folder or the
name of a shipped network; pairwise networks, Depth Anything V2, Depth Pro, RAFT and SEA-RAFT, told
apart by the names of their parameters. PyTorch is not needed and nothing in the file is executed.
Align3R in float32 takes 2.4 GB on disk and some 7 GB of memory. Licences: docs/weights.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from align3r_jax.config import NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.weights import folder, kinds, published, store
from align3r_jax.weights.store import LoadedNetwork
from experiments import cli

INPUT = flags.DEFINE_string(
    "input", None, "Weights to read: a file, folder or name.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "What to write; must not exist.", required=True)
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16"], "Type to store; default: as in the input."
)
FORMAT = flags.DEFINE_enum(
    "format", "orbax", ["orbax", "safetensors"],
    "orbax: a folder for this project; safetensors: one file with the reference's names.",
)  # fmt: skip
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace earlier weights at --output.")
INITIALISE_MISSING = flags.DEFINE_bool(
    "initialise_missing", False, "Give new heads to weights without (CroCo v2), to train from."
)
PRESET = flags.DEFINE_enum(
    "preset", None, sorted(published.PUBLISHED), "Which published network this must be; needed for "
    "metric depth networks whose file is named otherwise than published.",
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
    del argv
    output = Path(OUTPUT.value)
    if FORMAT.value == "orbax":
        folder.check_output(output, OVERWRITE.value)
    else:
        store.check_export(output, OVERWRITE.value)
    entry = published.PUBLISHED.get(PRESET.value)
    loaded = store.load(
        INPUT.value,
        kind=entry.kind if entry else None,
        dtype=DTYPE.value,
        initialise_missing=INITIALISE_MISSING.value,
        arguments=entry.arguments if entry else None,
    )
    name = published.name_of(loaded.kind, loaded.config)
    if entry is not None and entry.preset is not None and name != entry.name:
        raise UserError(
            f"{INPUT.value} is {name or 'of no published size'}, not {PRESET.value}; leave out "
            "--preset, or check the file."
        )
    print(f"Read {INPUT.value}: {describe(loaded)}.")
    if notice := published.licence_notice(name):
        print(notice)
    if FORMAT.value == "orbax":
        meta = {**loaded.meta, "converted_from": loaded.name}
        checksum = store.save(output, loaded.params, loaded.config, meta, overwrite=OVERWRITE.value)
        print(f"Wrote {output}, checksum {checksum[:16]}.")
        flag = kinds.get(loaded.kind).flag
        accept = "" if loaded.kind == kinds.PAIRWISE else ", kind=None"
        print(f"Use it with {flag}={output} or align3r_jax.load({str(output)!r}{accept}).")
    else:
        store.export(loaded.params, loaded.config, output, overwrite=OVERWRITE.value)
        print(f"Wrote {output} with the names of the reference implementation.")
    leaves = jax.tree.leaves(loaded.params)
    print(f"{sum(leaf.size for leaf in leaves):,} parameters, {leaves[0].dtype}.")


def describe(network: LoadedNetwork) -> str:
    """Returns the network in words: kind, size, and for pairwise ones depths, widths, head."""
    if network.kind != kinds.PAIRWISE:
        name = published.name_of(network.kind, network.config)
        return f"{kinds.get(network.kind).title} ({name or 'of no published size'})"
    config: NetworkConfig = network.config
    kind = "Align3R" if config.prior_branch else "DUSt3R or MonST3R"
    return (
        f"{kind}, encoder {config.enc_depth} x {config.enc_embed_dim}, decoders "
        f"{config.dec_depth} x {config.dec_embed_dim}, {config.head} heads, working size "
        f"{config.img_size}"
    )


if __name__ == "__main__":
    cli.run(main)
