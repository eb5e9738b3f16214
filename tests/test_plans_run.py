"""What the plans do when they run: escalation, union of threats, every attack on every example, stochastic scoring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustgen
from robustgen.attacks.apgd import APGDCE
from robustgen.attacks.pgd import PGD
from robustgen.attacks.plans import Near, Plan, parse_plan
from robustgen.cards import Card, bundled_cards
from robustgen.decoys import DECOYS
from robustgen.errors import SpecError
from robustgen.example import ExampleRecord
from robustgen.health import black_box_wins, broken_without_gradients
from robustgen.judge import Judge
from robustgen.record import RunRecord
from robustgen.registry import PLANS
from robustgen.threat import ThreatModel
from robustgen.witnesses import read_witnesses
from tests.helpers import make_convnet, make_images, make_linear

TESTED = {
    "saturate": "zero-gradient",
    "quantise": "zero-gradient",
    "noise": "randomised",
    "sparsify": "gradient-mismatch",
    "resize-and-pad": "randomised",
    "cold": "zero-gradient",
    "argmax": "probabilities",
}


def rows(record: RunRecord) -> list[ExampleRecord]:
    """The examples of a run."""
    text = (Path(record.run) / "examples.jsonl").read_text(encoding="utf-8")
    return [ExampleRecord.from_line(line) for line in text.splitlines()]


@pytest.fixture
def subject() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A conv net and 24 images that it classifies as labelled."""
    model = make_convnet(channels=3, classes=5)
    return model, make_images(model, 24, (3, 11, 8))


def test_union_of_threats_is_the_worst_case(subject: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    """An example is robust to the union exactly when it is robust to each threat alone."""
    model, data = subject
    alone = []
    for threat in ("linf:0.01", "l2:0.12"):
        record = robustgen.evaluate(model, data, threat, attacks="pgd:steps=20", out=tmp_path / threat[:2])
        alone.append([row.robust for row in rows(record)])
    both = robustgen.evaluate(model, data, "linf:0.01,l2:0.12", attacks="pgd:steps=20", out=tmp_path / "both")
    assert [a and b for a, b in zip(*alone, strict=True)] == [row.robust for row in rows(both)]
    assert ["linf/pgd", "l2/pgd"] == [attack.name for attack in both.attacks]
    x, _ = data
    witnesses = dict(read_witnesses(tmp_path / "both"))
    for row in rows(both):
        if row.threat is not None:
            assert ThreatModel.parse(row.threat).contains(x[row.id : row.id + 1], witnesses[row.id][None]).all()


def test_averaging_draws_of_a_deterministic_classifier_is_refused(
    subject: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    """Twenty equal answers cost twenty times as much and say nothing more."""
    with pytest.raises(SpecError, match=r"gives the same answer each time; type --plan standard"):
        robustgen.evaluate(*subject, "linf:0.01", plan="rand", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_threat_named_twice_is_refused(subject: tuple[nn.Module, tuple[Tensor, Tensor]]) -> None:
    """The union of a thing with itself is a slip."""
    with pytest.raises(SpecError, match="twice"):
        robustgen.evaluate(*subject, "linf:0.01,linf:0.01")


def test_individual_gives_every_attack_its_own_figure(
    subject: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure of an attack equals that of a run with this attack alone; the total is the worst case."""
    model, data = subject
    attacks = (PGD(steps=4), APGDCE(steps=10))
    monkeypatch.setitem(PLANS._entries, "both-alone", lambda threat: Plan("both-alone", 1, attacks, individual=True))
    record = robustgen.evaluate(model, data, "linf:0.01", plan="both-alone", out=tmp_path / "all")
    alone = [
        robustgen.evaluate(model, data, "linf:0.01", attacks=text, out=tmp_path / text[:3]).robust_accuracy
        for text in ("pgd:steps=4", "apgd-ce:steps=10")
    ]
    assert alone == [attack.robust_accuracy for attack in record.attacks]
    assert record.robust_accuracy.value <= min(estimate.value for estimate in alone)
    assert RunRecord.load(tmp_path / "all") == record


def test_near_attacks_take_only_what_came_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a linear classifier the share of the margin that is left is known: eps over the distance."""
    model = make_linear(classes=2)
    x, y = make_images(model, 60)
    x = 0.5 + 0.2 * (x - 0.5)
    y = model(x).argmax(1)
    distance = model.distance(x, y, "linf")
    eps = float(distance.median())
    plan = Plan("near", 1, (PGD(steps=30), Near(APGDCE(steps=5), within=0.5)))
    monkeypatch.setitem(PLANS._entries, "near", lambda threat: plan)
    record = robustgen.evaluate(model, (x, y), ThreatModel("linf", eps * 0.999), plan="near", out=tmp_path / "run")
    assert "where the margin fell below 0.5 of the clean one" in record.spec["protocol"]
    left = {row.id for row in rows(record) if row.broken_by != "pgd"}
    near = {k for k in left if 1 - 0.999 * eps / float(distance[k]) < 0.5}
    assert {row.id for row in rows(record) if "apgd-ce" in row.cost} == near
    assert 0 < len(near) < len(left)


@pytest.mark.parametrize("trick", sorted(DECOYS))
def test_rapid_flags_every_decoy_and_goes_on(trick: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lie raises the right flag, and the thorough attacks follow."""
    monkeypatch.setattr("robustgen.attacks.plans._autoattack", lambda threat: (PGD(steps=1),))
    record = robustgen.evaluate(f"decoy-{trick}", n=40, plan="rapid", out=tmp_path / "run")
    assert TESTED[trick] in record.flags, record.health
    assert record.clean_accuracy.value > 0.5
    assert "pgd" in [attack.name for attack in record.attacks]
    assert any("flags raised" in note for note in record.notes)


@pytest.mark.parametrize("name", ["fmnist-standard", "fmnist-at", "fmnist-at-l2"])
def test_rapid_leaves_honest_models_in_peace(name: str, tmp_path: Path) -> None:
    """No flag, no escalation."""
    record = robustgen.evaluate(name, n=40, plan="rapid", out=tmp_path / "run")
    assert () == record.flags, record.health
    assert len(parse_plan("rapid", None, ThreatModel("linf", 0.1)).attacks) == len(record.attacks)


def test_every_decoy_has_a_card() -> None:
    """What the code can do, the command line can name."""
    cards = {name: Card.load(path) for name, path in bundled_cards().items()}
    assert set(TESTED) == set(DECOYS) == {c.options["trick"] for c in cards.values() if c.kind == "decoy"}


def test_black_box_wins() -> None:
    """Only breaks by forwards alone, after others that used gradients, count; and there must be enough of them."""

    def example(id_: int, by: str | None) -> ExampleRecord:
        cost = {"apgd-ce": [21, 21], "square": [50, 0]}
        return ExampleRecord(id=id_, label=0, clean_prediction=0, robust=by is None, broken_by=by, cost=cost)

    assert broken_without_gradients(example(0, "square"))
    assert not broken_without_gradients(example(0, "apgd-ce"))
    assert black_box_wins(3, 100)
    assert not black_box_wins(2, 10)
    assert not black_box_wins(3, 1000)


def test_one_lucky_miss_is_not_broken() -> None:
    """A noisy classifier that is right nine times in ten is right, by the majority of its votes."""

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            miss = (torch.rand(len(x)) < 0.1).float()
            return torch.stack([1 - miss, miss], 1)

    x, y = torch.full((200, 1, 2, 2), 0.5), torch.zeros(200, dtype=torch.int64)
    threat = ThreatModel("linf", 0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lucky = Judge(Noisy(), threat)(x, y, x).broken.float().mean()
        fair = Judge(Noisy(), threat, votes=(21,))(x, y, x).broken.float().mean()
    assert 0.04 < float(lucky) < 0.2
    assert float(fair) == 0.0


def test_stochastic_classifiers_are_seeded_and_scored_by_majority(tmp_path: Path) -> None:
    """Right nine times in ten on any image: all robust, though 20 resubmissions would catch nearly every one once."""

    class NineInTen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            miss = (torch.rand(len(x)) < 0.1).float() + 0 * x.flatten(1).sum(1)
            return torch.stack([1 - miss, miss], 1)

    x, y = torch.full((40, 1, 4, 4), 0.5), torch.zeros(40, dtype=torch.int64)
    before = torch.random.get_rng_state()
    runs = [
        robustgen.evaluate(NineInTen().eval(), (x, y), "linf:1e-7", attacks="noise:steps=20", out=tmp_path / str(k))
        for k in range(2)
    ]
    assert torch.equal(before, torch.random.get_rng_state())
    assert rows(runs[0]) == rows(runs[1])
    assert "randomised" in runs[0].flags
    assert runs[0].clean_accuracy.value == 1.0
    assert runs[0].robust_accuracy.value == 1.0
