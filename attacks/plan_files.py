"""Plans of one's own: a TOML file that lists attacks, read and checked before anything runs.

name = "mine"                # of the plan; the file's own name where it is left out
version = 1                  # raise it when the figures could change
goal = "next"                # what counts as success, as --goal says it; left out: any wrong class
individual = false           # true: every attack sees all examples and gets a figure of its own

[[attacks]]                  # they run in the order of the file, each on what those before it left standing
name = "apgd-t"              # as `robustgen list attacks` names it
steps = 20                   # any parameter that `robustgen show apgd-t` names
loss = "margin-t"
queries = 100                # budget of an example: given up after the round that reaches it, restarts included
"""

from __future__ import annotations

import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

from robustgen.attacks.plans import Entry, Limited, Plan, build_attack, describe
from robustgen.errors import SpecError, unknown_name
from robustgen.fields import FILE_NAME, TEXT, WHOLE, Rule, check_value
from robustgen.goals import Goal

__all__ = ["PLAN_FILE", "disagreements", "read_plan", "stored_plan"]

PLAN_FILE = "plan.toml"
"""The copy that a run folder keeps."""

_RULES: dict[str, Rule] = {
    "name": FILE_NAME,
    "version": (lambda value: type(value) is int, "an integer"),
    "description": TEXT,
    "goal": TEXT,
    "individual": (lambda value: isinstance(value, bool), "true or false"),
    "attacks": (lambda value: value is not None, "a list of tables"),  # looked at table by table
}


def read_plan(path: Path, name: str | None = None) -> Plan:
    """The plan in a TOML file.

    Args:
        path: the file.
        name: of the plan where the file gives none; by default the file's own.

    Raises:
        SpecError: no such file, no TOML, or content that is no plan; what is unknown is met with the nearest name.
    """
    try:
        source = path.read_bytes()
        table = tomllib.loads(source.decode("utf-8"))
    except FileNotFoundError:
        raise SpecError(
            f"plan: no file {path}; name a plan (`robustgen list plans`) or a TOML file, or go on with a run that "
            "keeps a copy of it by --out RUN."
        ) from None
    except OSError as error:
        raise SpecError(f"plan {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"plan {path} is not valid TOML: {error}.") from None
    try:
        return _build_plan(table, name or path.stem, source)
    except SpecError as error:
        raise SpecError(f"plan {path}: {error}") from None


def stored_plan(folder: Path, name: str) -> Plan:
    """The plan that a run folder keeps a copy of."""
    return read_plan(folder / PLAN_FILE, name)


def disagreements(folder: Path, spec: dict[str, Any], classes: int) -> list[str]:
    """Sentences about a run's copy of its plan that is not what its specification says; none without a file."""
    wanted = spec.get("plan_sha256")
    if not wanted:
        return []
    path = folder / PLAN_FILE
    if not path.is_file():
        return [f"{path} is missing, the copy of the plan that was run."]
    found = sha256(path.read_bytes()).hexdigest()
    if found != wanted:
        return [f"{path} was edited: it hashes to {found[:12]}, the run says {wanted[:12]}."]
    entries = stored_plan(folder, spec["plan"]).attacks
    return [f"{path} lists {told}, which the protocol does not name." for told in
            (describe(entry, classes) for entry in entries) if told not in spec["protocol"]]  # fmt: skip


def _build_plan(table: dict[str, Any], name: str, source: bytes) -> Plan:
    for key, value in table.items():
        if key not in _RULES:
            raise unknown_name("key", key, _RULES, hint="An attack's own parameters stand in its [[attacks]] table.")
        check_value(key, value, _RULES[key])
    stages = table.get("attacks")
    named = isinstance(stages, list) and all(isinstance(s, dict) and isinstance(s.get("name"), str) for s in stages)
    if not named or not stages:
        raise SpecError("expected at least one [[attacks]] table with a name.")
    if "goal" in table:
        Goal.parse(table["goal"])
    return Plan(
        table.get("name", name), table.get("version", 1), tuple(_entry(stage) for stage in stages),
        individual=table.get("individual", False), goal=table.get("goal"), source=source,
    )  # fmt: skip


def _entry(table: dict[str, Any]) -> Entry:
    """One [[attacks]] table: an attack, within its budget where it has one."""
    options = {key: value for key, value in table.items() if key not in ("name", "queries")}
    attack = build_attack(table["name"], options, beside=("name", "queries"))
    if "queries" not in table:
        return attack
    check_value(f"{table['name']}: queries", table["queries"], WHOLE)
    return Limited(attack, table["queries"])
