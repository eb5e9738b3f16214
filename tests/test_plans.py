"""Plans: names, files, protocol strings."""

from __future__ import annotations

from pathlib import Path

import pytest

import robustgen
from robustgen.attacks.apgd import APGDT
from robustgen.attacks.baselines import Clean
from robustgen.attacks.pgd import PGD
from robustgen.attacks.plans import Near, Plan, parse_plan
from robustgen.attacks.square import Square
from robustgen.errors import SpecError
from robustgen.registry import PLANS
from robustgen.threat import ThreatModel
from tests.helpers import make_images, make_linear

LINF, L1 = ThreatModel("linf", 0.1), ThreatModel("l1", 10.0)


def test_protocol_says_exactly_what_runs() -> None:
    """Every parameter of every attack, with the loss that this number of classes really gets."""
    attacks = (APGDT(steps=20, restarts=3), Near(Square(steps=100), within=0.5))
    plan = Plan("mine", 2, attacks, escalation=(PGD(steps=3),))
    assert plan.protocol(10) == (
        "mine/2: apgd-t(steps=20, restarts=3, loss=dlr-t, patience=0, skip=0)"
        " > square(steps=100, p_init=0.8, restarts=1) where the margin fell below 0.5 of the clean one"
        "; where flagged also pgd(steps=3, rel_step=0.1, restarts=1, loss=ce)"
    )
    assert "loss=dlr-t:margin" in plan.protocol(2)


@pytest.mark.parametrize("name", list(PLANS))
@pytest.mark.parametrize("threat", [LINF, ThreatModel("l2", 0.5), L1], ids=str)
def test_every_plan_serves_every_norm(name: str, threat: ThreatModel) -> None:
    """A plan never stops at a norm."""
    assert parse_plan(name, None, threat).attacks


def test_repeated_attacks_get_distinct_labels() -> None:
    """So that each has its own row."""
    assert ["pgd", "apgd-t", "pgd#2"] == Plan("x", 1, (PGD(), APGDT(), PGD(steps=3))).labels()


def test_the_look_at_clean_images_is_no_attack(tmp_path: Path) -> None:
    """The baseline `clean` has a label of its own, and a run of it alone breaks nothing that is right."""
    assert Plan("mine", 1, (Clean(), PGD(), PGD())).labels() == ["clean#2", "pgd", "pgd#2"]
    net = make_linear()
    x, y = make_images(net, 6)
    y[0] = (y[0] + 1) % 4
    record = robustgen.evaluate(net, (x, y), "linf:0.1", attacks="clean", precision="float32", out=tmp_path / "run")
    assert (record.clean_accuracy.value, record.robust_accuracy.value) == (5 / 6, 5 / 6)
    assert [(attack.name, attack.broken, attack.forwards) for attack in record.attacks] == [("clean#2", 0, 5)]


def test_attacks_from_the_command_line() -> None:
    """Names with parameters, in order."""
    plan = parse_plan("rapid", "pgd:steps=7:rel_step=0.5:loss=margin, square", LINF)
    assert plan.protocol(10).startswith("custom/1: pgd(steps=7, rel_step=0.5, restarts=1, loss=margin) > square(")


def test_attacks_from_a_file(tmp_path: Path) -> None:
    """A TOML list of tables."""
    path = tmp_path / "mine.toml"
    path.write_text('version = 3\n[[attacks]]\nname = "pgd"\nsteps = 9\n[[attacks]]\nname = "fgsm"\n', encoding="utf-8")
    assert parse_plan(str(path), None, LINF).protocol(10).startswith("mine/3: pgd(steps=9,")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", r"expected at least one \[\[attacks\]\]"),
        ("attacks = 3", r"expected at least one \[\[attacks\]\]"),
        ("[[attacks]]\nsteps = 3", r"expected at least one \[\[attacks\]\]"),
        ('[[attacks]]\nname = "pdg"', "did you mean 'pgd'"),
        ('[[attacks]]\nname = "pgd"\nsteps = "x"', "steps must be an integer"),
        ("[[attacks", "not valid TOML"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, content: str, says: str) -> None:
    """Checked before anything runs."""
    path = tmp_path / "bad.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SpecError, match=says):
        parse_plan(str(path), None, LINF)


@pytest.mark.parametrize(
    ("plan", "attacks", "says"),
    [("rapd", None, "did you mean 'rapid'"), ("no.toml", None, "no file no.toml"), ("rapid", " , ", "got nothing")],
)
def test_bad_names(plan: str, attacks: str | None, says: str) -> None:
    """The nearest name, or where to look."""
    with pytest.raises(SpecError, match=says):
        parse_plan(plan, attacks, LINF)
