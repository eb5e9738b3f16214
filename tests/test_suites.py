"""Suites: complete, of the right types, and nothing beside them may say otherwise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from robustgen.attacks.plans import parse_plan
from robustgen.data import DATA, parse_ids
from robustgen.errors import SpecError
from robustgen.suites import Suite, load_suite, suite_files
from robustgen.threat import ThreatModel

GOOD = {
    "name": '"mine"', "version": "2", "description": '"of mine"', "data": '"cifar10"', "ids": '"0-9"',
    "threat": '"l2:0.5"', "plan": '"rapid"', "seed": "7",
}  # fmt: skip


def write(folder: Path, **changes: str) -> str:
    """A suite file with some lines changed; an empty text leaves a line out."""
    lines = [f"{key} = {value}" for key, value in {**GOOD, **changes}.items() if value]
    path = folder / "mine.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", list(suite_files()))
def test_bundled_suites_can_run(name: str) -> None:
    """Each is named after its file, and data, ids, threat and plan exist."""
    suite = load_suite(name)
    assert suite.name == name
    assert suite.version >= 1
    assert suite.data in DATA
    threat = ThreatModel.parse(suite.threat)
    assert str(threat) == suite.threat
    assert parse_plan(suite.plan, None, threat).name == suite.plan
    assert bool(suite.surrogates) == (suite.plan == "transfer")
    size = {"fmnist-test-1k": 1000}.get(suite.data, 10_000)
    assert parse_ids(suite.ids, None, size, suite.data)


def test_a_suite_from_a_file(tmp_path: Path) -> None:
    """A user's own suite needs no installation."""
    wanted = Suite(
        name="mine", version=2, description="of mine", data="cifar10", ids="0-9", threat="l2:0.5", plan="rapid", seed=7
    )
    assert wanted == load_suite(write(tmp_path))


def test_request_holds_what_is_fixed(tmp_path: Path) -> None:
    """Data, ids, threat, plan and seed; saying the same beside the suite is no contradiction."""
    suite = load_suite(write(tmp_path))
    names = ("name", "version", "description", "surrogates")
    fixed = {key: value for key, value in asdict(suite).items() if key not in names}
    assert fixed == suite.request({})
    assert fixed == suite.request({"seed": 7, "threat": "l2:0.5"})
    moved = load_suite(write(tmp_path, plan='"transfer"', surrogates='"a,b"'))
    assert {**fixed, "plan": "transfer", "surrogates": "a,b"} == moved.request({})
    with pytest.raises(SpecError, match=r"--surrogates a contradicts suite mine \(surrogates a,b\)"):
        moved.request({"surrogates": "a"})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"threat": "l2:1"}, r"--threat l2:1 contradicts suite mine \(threat l2:0.5\)"),
        ({"seed": 0}, r"--seed 0 contradicts suite mine \(seed 7\)"),
        ({"data": "fashion-mnist"}, "--data fashion-mnist contradicts"),
        ({"n": 5}, "--n 5 contradicts suite mine"),
        ({"attacks": "pgd"}, "--attacks pgd contradicts suite mine"),
    ],
)
def test_contradiction_is_refused(given: dict[str, object], says: str, tmp_path: Path) -> None:
    """A figure of another setting must not pass for one of the suite."""
    with pytest.raises(SpecError, match=says):
        load_suite(write(tmp_path)).request(given)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": ""}, "lacks seed"),
        ({"seed": '"7"'}, "seed must be int, got '7'"),
        ({"seed": "true"}, "seed must be int, got True"),
        ({"ids": "[0, 1]"}, "ids must be str"),
        ({"thraet": '"l2:1"'}, "field of suite mine.toml 'thraet'; did you mean 'threat'"),
        ({"name": "mine"}, "not valid TOML"),
    ],
)
def test_bad_suite_says_what_is_wrong(changes: dict[str, str], says: str, tmp_path: Path) -> None:
    """Missing, unknown and mistyped fields."""
    with pytest.raises(SpecError, match=says):
        load_suite(write(tmp_path, **changes))


def test_unknown_suite_and_missing_file(tmp_path: Path) -> None:
    """The nearest name, or the file that is not there."""
    with pytest.raises(SpecError, match="did you mean 'fmnist-linf'"):
        load_suite("fmnist-lnf")
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        load_suite(str(tmp_path / "none.toml"))
