"""The rows of the network's programs: all levels and forms, and what they leave out."""

import subprocess
import sys

import pytest

_CODE = """
import dataclasses
from experiments import benchmark_kernels
from tests.networks import micro
config = dataclasses.replace(micro.ALIGN3R, dec_depth=4, head={head!r})
found = benchmark_kernels.rows(config, 32, 48, 2, 1)
print(benchmark_kernels.table(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("head, count", [("dpt", 11), ("linear", 7)])
def test_rows(head, count):
    """In a process of its own: two scripts with flags do not share one."""
    run = subprocess.run(
        [sys.executable, "-c", _CODE.format(head=head)], capture_output=True, text=True, check=True
    )
    lines = run.stdout.strip().splitlines()[2:]
    assert len(lines) == count
    for line in lines:
        operations, seconds = (float(cell) for cell in line.split("|")[2:4])
        assert operations >= 0 and seconds > 0
    assert sum("cheap" in line for line in lines) == (4 if head == "dpt" else 0)
