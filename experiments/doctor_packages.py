"""Which packages are here, which are supported, and what each is for. Needs nothing but Python.

Supported ranges come from `pyproject.toml`, purposes and tested versions from `requirements.txt`.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
OK, NOTE, ABSENT, BROKEN = "ok", "note", "absent", "broken"
_PYTHON = (3, 11)
INSTALL = "make venv, or python -m pip install -r requirements.txt"
_REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)\s*([<>=!~].*)?$")
# The same module under other names of its package.
_TWINS = {
    "opencv-python-headless": (
        "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless",
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    state: OK; NOTE: works, but worth knowing; ABSENT: something optional is not here; BROKEN: the
    main command cannot run. text: what was found. advice: what to do, "" for nothing. facts: the
    same for programs.
    """

    section: str
    name: str
    state: str
    text: str
    advice: str = ""
    facts: dict = dataclasses.field(default_factory=dict)


def packages(root: Path = ROOT) -> list[Finding]:
    """Returns Python and every direct dependency, needed ones first."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    purposes = _purposes((root / "requirements.txt").read_text(encoding="utf-8"))
    groups = {"needed": project["dependencies"], **project.get("optional-dependencies", {})}
    rows = [_python()]
    for group, requirements in groups.items():
        for requirement in requirements:
            name, allowed = _split(requirement)
            rows.append(_package(name, allowed, purposes.get(_key(name), ""), group))
            if name == "jax":
                rows.append(_package("jaxlib", allowed, purposes.get("jaxlib", ""), group))
    return rows


def missing() -> str:
    """Returns a sentence about needed packages that are not here, "" if all are."""
    absent = [row.name for row in packages() if row.state == BROKEN]
    if not absent:
        return ""
    return (
        f"The main command cannot run with {sys.executable}: {', '.join(absent)} missing. Install "
        f"them ({INSTALL}), or use the Python they are in (.venv/bin/python after make venv)."
    )


def allows(allowed: str, version: str) -> bool:
    """Whether `version` is in a range such as ">=0.10.2,<0.12"; numbers only, no pre-releases."""
    for part in filter(None, allowed.split(",")):
        sign, bound = re.fullmatch(r"\s*(>=|<=|==|<|>)\s*([\d.]+)\s*", part).groups()
        have, want = _numbers(version), _numbers(bound)
        width = max(len(have), len(want))
        have, want = (n + (0,) * (width - len(n)) for n in (have, want))
        fits = {">=": have >= want, "<=": have <= want, "==": have == want,
                "<": have < want, ">": have > want}  # fmt: skip
        if not fits[sign]:
            return False
    return True


def _python() -> Finding:
    version = platform.python_version()
    enough = sys.version_info[:2] >= _PYTHON
    wanted = ".".join(map(str, _PYTHON))
    return Finding(
        "Software", "python", OK if enough else BROKEN, f"{version} ({wanted} or newer)",
        "" if enough else f"Install Python {wanted} or newer.",
        {"version": version, "path": sys.executable},
    )  # fmt: skip


def _package(name: str, allowed: str, purpose: str, group: str) -> Finding:
    section = "Software" if group == "needed" else "Optional packages"
    facts = {"version": None, "supported": allowed, "group": group, "purpose": purpose}
    for known in (name, *_TWINS.get(name, ())):
        try:
            version = metadata.version(known)
        except metadata.PackageNotFoundError:
            continue
        facts["version"] = version
        text = f"{version}: {purpose}"
        if allows(allowed, version):
            return Finding(section, name, OK, text, "", facts)
        advice = f"Supported is {allowed}: {INSTALL}."
        return Finding(section, name, NOTE, text, advice, facts)
    if group == "needed":
        return Finding(section, name, BROKEN, f"missing: {purpose}", f"{INSTALL}.", facts)
    advice = f'python -m pip install "{name}{allowed}"'
    return Finding(section, name, ABSENT, f"not here: {purpose}", advice, facts)


def _split(requirement: str) -> tuple[str, str]:
    name, allowed = _REQUIREMENT.fullmatch(requirement.strip()).groups()
    return name, (allowed or "").strip()


def _purposes(text: str) -> dict[str, str]:
    """Package -> the comment behind its line."""
    lines = re.findall(r"^([A-Za-z0-9_.-]+)==\S+\s*#\s*(.+)$", text, re.MULTILINE)
    return {_key(name): purpose.strip() for name, purpose in lines}


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.match(r"\d+(\.\d+)*", version)[0].split("."))
