"""An attack for what is left where few are: when it is run, after an interruption as well, and by several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import robustgen
from robustgen.attacks.apgd import APGDCE
from robustgen.attacks.pgd import PGD
from robustgen.attacks.plans import Few, Plan, parse_plan
from robustgen.journal import Journal
from robustgen.record import RunRecord
from robustgen.registry import PLANS
from robustgen.runs import read_examples
from robustgen.threat import ThreatModel
from tests.helpers import make_images, make_linear

Task = tuple[nn.Module, Tensor, Tensor, float]


@pytest.fixture
def task() -> Task:
    """A linear classifier, images of which four are misclassified, and an eps that breaks three in ten of the rest."""
    model = make_linear(classes=2)
    x, y = make_images(model, 44)
    distance = model.distance(x[4:], y[4:], "linf")
    y[:4] = 1 - y[:4]
    return model, x, y, float(distance.quantile(0.3))


def run(task: Task, out: Path, most: float, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """One short attack breaks nearly all that can be broken; a longer one follows where few are left."""
    model, x, y, eps = task
    plan = Plan("thin", 1, (PGD(steps=3, rel_step=0.5), Few(APGDCE(steps=5), most=most), PGD(steps=2)))
    monkeypatch.setitem(PLANS._entries, "thin", lambda threat: plan)
    return robustgen.evaluate(model, (x, y), ThreatModel("linf", eps), plan="thin", out=out, precision="float32")


def asked(folder: Path) -> set[int]:
    """The examples that the second attack saw."""
    return {row.id for row in read_examples(folder) if "apgd-ce" in row.cost}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the clock."""
    return {
        path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "seconds.json"
    }


def test_it_is_run_where_few_are_left(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On all that are left, or on none; misclassified images count on neither side."""
    first = run(task, tmp_path / "many", 0.5, monkeypatch)
    share = first.robust_accuracy.value * 44 / 40
    assert 0.6 < share < 0.8
    assert asked(tmp_path / "many") == set()
    run(task, tmp_path / "few", share + 0.01, monkeypatch)
    assert asked(tmp_path / "few") == {
        row.id for row in read_examples(tmp_path / "few") if row.broken_by in (None, "apgd-ce")
    }
    run(task, tmp_path / "fewer", share - 0.01, monkeypatch)
    assert asked(tmp_path / "fewer") == set()
    assert "apgd-ce(steps=5, restarts=1, loss=ce, patience=0) where at most 0.5 of those" in first.spec["protocol"]


@pytest.mark.parametrize("most", [0.5, 0.9])
@pytest.mark.parametrize("robust", [True, False])
def test_an_interruption_changes_nothing(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: float, robust: bool
) -> None:
    """Whether survivors were being filed or the attack was at work: the share is that of the whole run."""
    run(task, tmp_path / "whole", most, monkeypatch)
    filed, real = [], Journal.add

    def add(self: Journal, record: Any, x_adv: Tensor | None) -> None:
        real(self, record, x_adv)
        filed.append(record)
        if record.robust == robust and len([one for one in filed if one.robust == robust]) == 13:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "add", add)
        with pytest.raises(KeyboardInterrupt):
            run(task, tmp_path / "cut", most, patch)
    run(task, tmp_path / "cut", most, monkeypatch)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_the_share_is_that_of_all_ranks(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank has lost all of its forty: with seven in ten left here, few are left in all."""
    both = lambda self, value: [value, (0, 0, 40)] if isinstance(value, tuple) and len(value) == 3 else [value]  # noqa: E731
    monkeypatch.setattr("robustgen.ranks.Ranks.gather", both)
    run(task, tmp_path / "run", 0.5, monkeypatch)
    assert asked(tmp_path / "run")


@pytest.mark.parametrize("name", ["rapid", "strong"])
def test_the_default_plans_look_harder_where_few_are_left(name: str) -> None:
    """Before the probe without gradients, and not behind a flag."""
    attacks = parse_plan(name, None, ThreatModel("l2", 0.3)).attacks
    assert any(isinstance(entry, Few) for entry in attacks[:-1])
    assert not isinstance(attacks[-1], Few)
