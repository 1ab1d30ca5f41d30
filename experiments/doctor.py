"""Says whether the main command can run here, what is missing, and what to do about it.

    python -m experiments.doctor [--json]

Looks at packages, devices, memory, the compile cache, weights and video codecs; multiplies a
matrix on every kind of device and decodes the sample video. Nothing is downloaded or written
(but to the compile cache). The exit code is 0 if the main command can run, 1 otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

from experiments import doctor_packages

if __name__ == "__main__" and (sentence := doctor_packages.missing()):
    # Said before anything is imported that may be missing.
    print(sentence, file=sys.stderr)
    sys.exit(1)

try:
    from absl import flags

    from experiments import cli
except (ImportError, RuntimeError, AttributeError) as error:
    if __name__ != "__main__":
        raise
    print(f"JAX cannot be imported: {error}. Install: {doctor_packages.INSTALL}.", file=sys.stderr)
    sys.exit(1)

JSON = flags.DEFINE_bool("json", False, "Print everything as JSON, for programs.")
_MARKS = {"ok": "ok", "note": "NOTE", "absent": "-", "broken": "BROKEN"}
_CAN = (
    "The main command can run here: make demo, or python -m experiments.reconstruct --help. It "
    "needs no weights; those above make its results better (docs/weights.md)."
)


def main(argv: Sequence[str]) -> int:
    """Prints the findings; returns the exit code."""
    del argv
    findings = examine()
    broken = [found for found in findings if found.state == doctor_packages.BROKEN]
    print(as_json(findings) if JSON.value else as_text(findings))
    return 1 if broken else 0


def examine() -> list[doctor_packages.Finding]:
    """Returns all findings, in the order of the report."""
    packages = doctor_packages.packages()
    try:
        from experiments import doctor_checks, doctor_weights
    except (ImportError, RuntimeError, AttributeError) as error:
        # Installed, but of versions that do not fit together, or without a system library.
        advice = f"Install them again: {doctor_packages.INSTALL}."
        state = doctor_packages.BROKEN
        return [
            *packages, doctor_packages.Finding("Software", "imports", state, str(error), advice)
        ]  # fmt: skip
    return [
        *packages,
        *doctor_checks.devices(),
        *doctor_checks.computations(),
        *doctor_checks.host(),
        doctor_checks.compile_cache(),
        *doctor_checks.codecs(),
        *doctor_weights.weights(),
    ]


def verdict(findings: Sequence[doctor_packages.Finding]) -> str:
    """Returns the last sentence of the report."""
    broken = [found for found in findings if found.state == doctor_packages.BROKEN]
    if not broken:
        return _CAN
    names = ", ".join(f"{found.name} ({found.text})" for found in broken)
    return f"The main command cannot run here: {names}. {broken[0].advice}"


def as_text(findings: Sequence[doctor_packages.Finding]) -> str:
    """Returns the report for people."""
    lines = []
    for section in dict.fromkeys(found.section for found in findings):
        lines += [section]
        for found in findings:
            if found.section == section:
                lines += [f"  {_MARKS[found.state]:6} {found.name}: {found.text}"]
                lines += [f"           {found.advice}"] if found.advice else []
        lines += [""]
    return "\n".join([*lines, verdict(findings)])


def as_json(findings: Sequence[doctor_packages.Finding]) -> str:
    """Returns the report for programs."""
    content = {
        "can_run": all(found.state != doctor_packages.BROKEN for found in findings),
        "verdict": verdict(findings),
        "findings": [dataclasses.asdict(found) for found in findings],
    }
    return json.dumps(content, indent=1, allow_nan=False)


if __name__ == "__main__":
    cli.run(main)
