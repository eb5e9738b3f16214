"""README and CONTRIBUTING: the two opening commands are where .ci/run looks for them, and the Python examples run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from robustgen.oracle import Oracle
from robustgen.registry import ATTACKS
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import ROOT, make_images, make_linear

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_readme_opens_with_the_two_commands() -> None:
    """The first two fenced blocks are one line of shell each: install and evaluate, install and test."""
    assert [kind for kind, _ in FENCES[:2]] == ["sh", "sh"]
    (evaluate,), (test,) = (text.splitlines() for _, text in FENCES[:2])
    assert evaluate.startswith("python3 -m venv .venv && ")
    assert evaluate.endswith(" && .venv/bin/robustgen eval")
    assert test.startswith("python3 -m venv .venv && ")
    assert test.endswith(" && .venv/bin/python -m pytest -q")


def test_commands_install_extras_that_exist() -> None:
    """Each `.[extra]` named in the README is an extra of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for group in re.findall(r"\.\[([\w,-]+)\]", README) for name in group.split(",")}
    assert "test" in named
    assert named <= set(extras)


def test_readme_has_python_examples() -> None:
    """There is something for the next test to run."""
    assert any("robustgen.evaluate(" in code for code in PYTHON)
    assert any("robustgen.attack(" in code for code in PYTHON)


@pytest.mark.parametrize("code", PYTHON, ids=[f"block{i}" for i in range(1, len(PYTHON) + 1)])
def test_python_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Python block runs as it stands, by itself, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def test_attack_of_the_contributing_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the imports of attacks/pgd.py the example attack works just beyond the margin, not within."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", guide, flags=re.MULTILINE | re.DOTALL)
    pgd = (ROOT / "attacks" / "pgd.py").read_text(encoding="utf-8")
    imports = re.findall(r"^(?:from (?!__future__)|import ).*", pgd, flags=re.MULTILINE)
    assert "pgd" in ATTACKS  # everything has registered itself before the table is copied
    monkeypatch.setattr(ATTACKS, "_entries", dict(ATTACKS._entries))
    text = "\n".join([*imports, "from typing import ClassVar", code])
    exec(compile(text, "CONTRIBUTING.md", "exec", dont_inherit=True), {"__name__": "bim"})
    attack = ATTACKS["bim"]()
    model = make_linear()
    x, y = make_images(model, n=1)
    radius = float(model.distance(x, y, "l2"))
    for factor, expected in ((0.99, False), (1.25, True)):
        oracle = Oracle(model)
        state = attack.init(oracle, x, y, ThreatModel("l2", factor * radius), ExampleRng.of(0, [0]))
        for _ in range(attack.rounds):
            state = attack.step(oracle, state)
        assert (int(state.logits.argmax(1)) != int(y)) is expected
        assert oracle.cost.backwards == attack.rounds
