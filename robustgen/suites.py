"""Suites: the data, examples, threat, plan and seed of a published comparison, one TOML each in benchmarks/."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import robustgen.benchmarks
from robustgen.errors import SpecError, unknown_name

__all__ = ["Suite", "load_suite", "suite_files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What is held fixed so that figures can be compared; `version` rises whenever a figure could change.

    Attributes:
        surrogates: names with commas, of a suite of transfer; empty in others.
    """

    name: str
    version: int
    description: str
    data: str
    ids: str
    threat: str
    plan: str
    seed: int
    surrogates: str = ""

    def request(self, given: dict[str, Any]) -> dict[str, Any]:
        """The suite's settings for a `Request`.

        Raises:
            SpecError: a setting was given beside the suite that says otherwise: then it is no longer that suite.
        """
        fixed = {key: getattr(self, key) for key in ("data", "ids", "threat", "plan", "seed")}
        fixed |= {"surrogates": self.surrogates} if self.surrogates else {}
        for key, value in given.items():
            if fixed.get(key) != value:
                said = f"({key} {fixed[key]})" if key in fixed else "(it fixes the examples and the plan)"
                raise SpecError(f"--{key} {value} contradicts suite {self.name} {said}; drop one of the two.")
        return fixed


def suite_files() -> dict[str, Path]:
    """Name -> TOML file of every suite that comes with robustgen."""
    folders = [Path(folder) for folder in robustgen.benchmarks.__path__]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def load_suite(name: str) -> Suite:
    """Read a suite by name or from a TOML file."""
    known = suite_files()
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None:
        raise unknown_name("suite", name, known, hint="See `robustgen list suites`.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"suite {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"suite {path} is not valid TOML: {error}.") from None
    wanted = {f.name: f.type for f in fields(Suite)}
    for key in table:
        if key not in wanted:
            raise unknown_name(f"field of suite {path.name}", key, wanted)
    missing = [f.name for f in fields(Suite) if f.name not in table and f.default is MISSING]
    if missing:
        raise SpecError(f"suite {path} lacks {', '.join(missing)}.")
    for key, value in table.items():
        if type(value).__name__ != wanted[key]:
            raise SpecError(f"suite {path}: {key} must be {wanted[key]}, got {value!r}.")
    return Suite(**table)
