"""`robustgen new`: what it writes runs, passes its own test and the linter, and is found by its name."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import robustgen.attacks
import robustgen.purify
from robustgen.cli import _run
from robustgen.purify.base import PURIFIERS
from robustgen.registry import ATTACKS, Registry
from tests.helpers import ROOT

REGISTRIES: dict[str, Registry[Any]] = {"attack": ATTACKS, "purifier": PURIFIERS}
NAMES = {"attack": "my-attack", "purifier": "my-purifier", "classifier": "my-net"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder; what is imported from it is forgotten afterwards, by the registries too."""
    for registry in REGISTRIES.values():
        list(registry)
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


def run_tests(module: ModuleType, tmp_path: Path) -> int:
    """Call the test functions of a module, as pytest would; how many there were."""
    tests = [function for name, function in inspect.getmembers(module, inspect.isfunction) if name.startswith("test_")]
    for function in tests:
        function(**({"tmp_path": tmp_path} if "tmp_path" in inspect.signature(function).parameters else {}))
    return len(tests)


def lint(folder: Path, *options: str) -> None:
    """Ruff finds nothing in a folder, and would format nothing."""
    if find_spec("ruff") is None:
        return
    for command in (["check", "--no-cache", *options], ["format", "--check", *options[2:]]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(folder)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["attack", "purifier"])
def test_package_of_a_user(place: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Outside a checkout: a package whose entry point is found, whose test passes, and whose code is clean."""
    name, module = NAMES[kind], f"robustgen_{NAMES[kind].replace('-', '_')}"
    assert _run(["new", kind, name]) == 0
    root = place / f"robustgen-{name}"
    assert {path.name for path in root.iterdir()} == {"pyproject.toml", f"{module}.py", f"test_{module}.py"}
    project = tomllib.loads((root / "pyproject.toml").read_text())
    ((group, points),) = project["project"]["entry-points"].items()
    info = root / f"{module}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: robustgen-{name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    monkeypatch.syspath_prepend(root)
    assert list(Registry(kind)) == [name]
    assert run_tests(importlib.import_module(f"test_{module}"), place) == 2
    lint(root, "--select", "E,F,I,B,UP")


@pytest.mark.parametrize("kind", ["attack", "purifier"])
def test_file_of_a_checkout(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """In a checkout: one file beside the others and one test, clean by this project's own rules."""
    for folder in ("robustgen", "attacks", "purify", "tests"):
        (place / folder).mkdir()
    assert _run(["new", kind, NAMES[kind]]) == 0
    said = capsys.readouterr().out
    assert ("INSTANCES" in said) == (kind == "attack")
    home, stem = ("attacks", "my_attack") if kind == "attack" else ("purify", "my_purifier")
    written = sorted(str(path.relative_to(place)) for path in place.rglob("*.py"))
    assert written == [f"{home}/{stem}.py", f"tests/test_{stem}.py"]
    lint(place, "--extend-select", "I", "--config", str(ROOT / "pyproject.toml"))
    package = {"attacks": robustgen.attacks, "purify": robustgen.purify}[home]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(place / home)])
    monkeypatch.syspath_prepend(place / "tests")
    assert run_tests(importlib.import_module(f"test_{stem}"), place) == 2
    assert NAMES[kind] in REGISTRIES[kind]


def test_file_of_a_classifier(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file for python: and its test, which evaluates it."""
    assert _run(["new", "classifier", "my-net", "--out", "models"]) == 0
    monkeypatch.syspath_prepend(place / "models")
    assert run_tests(importlib.import_module("test_my_net"), place) == 1
    lint(place / "models", "--select", "E,F,I,B,UP", "--config", "line-length=120")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("attac", "x"), "unknown kind 'attac'; did you mean 'attack'"),
        (("attack", "My_Attack"), "must be small letters, digits and -, beginning with a letter, such as my-attack"),
        (("attack", "../x"), "must be small letters"),
        (("attack", "pgd"), "attack 'pgd' is there already; see `robustgen show pgd`"),
        (("purifier", "jpeg"), "purifier 'jpeg' is there already"),
        (("classifier", "class"), "must be small letters"),
        (("classifier", "held"), "held.py is there already; choose another name"),
    ],
)
def test_refusals(place: Path, capsys: pytest.CaptureFixture[str], typed: tuple[str, str], says: str) -> None:
    """In a sentence, and nothing is written."""
    (place / "held.py").write_text("mine\n")
    assert _run(["new", *typed]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["held.py"]
    assert (place / "held.py").read_text() == "mine\n"
