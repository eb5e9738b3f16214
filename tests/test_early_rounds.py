"""First rounds in bfloat16: which rows they are, that the last ones are exact, and what is chosen on which machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from robustgen import engine, precision
from robustgen.attacks.base import Attack, QueryModel, State, early_rounds
from robustgen.attacks.plans import parse_attack
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.precision import SearchForm, SearchModel, choose_form, parse_form
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, per_row
from tests.helpers import make_convnet, make_images
from tests.nearest_helpers import FarLinear

LOW = SearchForm(torch.float32, channels_last=True, folded=True, begins_low=True)
FREE = ThreatModel.unbounded("l2")


class Twofold(nn.Module):
    """Two networks: the first answers early, the other one later; both count the images they see."""

    def __init__(self, early: nn.Module, later: nn.Module) -> None:
        super().__init__()
        self.networks = [early, later]
        self.seen = [0, 0]
        self.early = self._ask(0)
        self.later = self._ask(1)

    def _ask(self, which: int) -> nn.Module:
        class Ask(nn.Module):
            def forward(_, x: Tensor) -> Tensor:  # noqa: N805 -- self is the outer one
                self.seen[which] += len(x)
                logits: Tensor = self.networks[which](x)
                return logits

        return Ask()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.later(x)
        return logits


def outcomes(attack: Attack, model: nn.Module, far: FarLinear, n: int, threat: ThreatModel, size: int) -> list[float]:
    """Distances, through the engine with a batch of that size, judged by the classifier itself."""
    x, y = far.images(n)
    found: dict[int, engine.Outcome] = {}
    engine.run(
        attack, Oracle(model), Judge(far, threat), lambda ids: (x[list(ids)], y[list(ids)]), range(n), threat, seed=0,
        batch_size=size, finish=lambda o: found.__setitem__(o.id, o),
    )  # fmt: skip
    return [found[id_].distance or torch.inf for id_ in range(n)]


@pytest.mark.parametrize("size", [2, 5, 64])
@pytest.mark.parametrize("name", ["fmn:steps=79", "ddn:steps=79", "fmn-t:steps=79:restarts=2"])
def test_the_share_of_rounds_and_no_other_is_early(name: str, size: int) -> None:
    """85 % of the queries go to the early network, and what is found is as near as by the exact one alone."""
    far, n = FarLinear((1, 6, 5), 3), 5
    shifted = FarLinear((1, 6, 5), 3)
    shifted.bias = shifted.bias + 0.01 * torch.tensor([1.0, -1.0, -1.0])  # its boundaries lie farther away
    model, attack = Twofold(shifted, far), parse_attack(name)
    mixed = outcomes(attack, model, far, n, FREE, size)
    exact = outcomes(attack, far, far, n, FREE, size)
    assert model.seen[0] == pytest.approx(0.85 * sum(model.seen), abs=0.04 * sum(model.seen))
    assert model.seen[1] > 0
    assert mixed == pytest.approx(exact, rel=0.05), "farther by more than a step of DDN, which is 5 %"
    assert outcomes(attack, model, far, n, FREE, 1) == pytest.approx(mixed, rel=1e-5), "a batch of another size differs"


@pytest.mark.parametrize("name", ["fmn:steps=399", "fmn-t:steps=399:restarts=2"])
def test_what_the_early_network_calls_broken_does_not_hold_the_walk_back(name: str) -> None:
    """It calls the clean image itself misclassified, so its nearest point lies at distance 0; no image there is one."""
    far, n = FarLinear((1, 6, 5), 3), 5
    wrong = FarLinear((1, 6, 5), 3)
    wrong.bias = wrong.bias - 100 * torch.nn.functional.one_hot(far.images(n)[1][0], 3)
    mixed = outcomes(parse_attack(name), Twofold(wrong, far), far, n, FREE, 64)
    assert mixed == pytest.approx(outcomes(parse_attack(name), far, far, n, FREE, 64), rel=0.05)


@pytest.mark.parametrize(("name", "threat"), [("fmn:steps=20", ThreatModel("l2", 0.1)), ("fab:steps=20", FREE)])
def test_nothing_is_early_inside_an_eps_or_for_an_attack_that_does_not_say_so(name: str, threat: ThreatModel) -> None:
    """The network of the first rounds is never asked."""
    far = FarLinear((1, 6, 5), 3)
    model = Twofold(far, far)
    outcomes(parse_attack(name), model, far, 4, threat, 4)
    assert model.seen[0] == 0 < model.seen[1]


def test_rows_at_different_places_are_asked_each_in_its_form() -> None:
    """Logits and gradients of a mixed batch are those of each row by itself, in its own order."""
    low, exact = FarLinear((1, 4, 4), 3, seed=1), FarLinear((1, 4, 4), 3, seed=2)
    oracle, x, y = Oracle(Twofold(low, exact)), torch.rand(5, 1, 4, 4), torch.zeros(5, dtype=torch.int64)
    place = torch.tensor([0, 9, 3, 4, 0])
    with oracle.showing("gradients", early_until=3):
        oracle.look_at(ExampleRng.of(0, range(5)), place)
        logits, query = oracle.logits(x), oracle.grad(x, y, lambda z, _: z[:, 0])
        known = oracle.logits(x, (torch.tensor([True, False, False, False, False]), logits))
    early = (place <= 3)[:, None]
    assert torch.allclose(logits, torch.where(early, low(x), exact(x)))
    assert torch.allclose(known, logits)
    slopes = torch.where(early, low.weight[0], exact.weight[0])
    assert torch.allclose(query.grad.flatten(1), slopes, atol=1e-6)
    oracle.look_at(ExampleRng.of(0, range(5)), place)
    assert torch.allclose(oracle.logits(x), exact(x)), "after the attack nothing is early"


@dataclass(frozen=True)
class Nearing:
    """Comes 5 % nearer in every round; by `early` half of them may be coarse."""

    early: float
    rounds: ClassVar[int] = 40
    restarts: ClassVar[int] = 1

    def init(self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng) -> State:
        return State.start(x, y, threat, rng)

    def step(self, oracle: QueryModel, s: State) -> State:
        x_adv = s.x + 0.3 * 0.95 ** per_row(s.i, s.x)
        return replace(s, x_adv=x_adv, logits=oracle.logits(x_adv), i=s.i + 1)


class Positive(nn.Module):
    """Class 1 wherever any pixel is above 0: each point of `Nearing` from black images is a success."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), x.flatten(1).sum(1)], 1)


@pytest.mark.parametrize(("early", "verdicts"), [(0.0, 40), (0.5, 3 + 20)])
def test_early_points_are_judged_where_they_are_much_nearer(early: float, verdicts: int) -> None:
    """Every seventh of the first half, each of the second: the nearest of all is the last one, either way."""
    x, y, judge = torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), Twofold(Positive(), Positive())
    found: list[float | None] = []
    engine.run(
        Nearing(early), Oracle(Twofold(Positive(), Positive())), Judge(judge, FREE),
        lambda ids: (x[list(ids)], y[list(ids)]), [0, 1], FREE, seed=0, batch_size=2,
        finish=lambda o: found.append(o.distance),
    )  # fmt: skip
    assert judge.seen[1] == 2 * verdicts
    assert found == pytest.approx([3 * 0.3 * 0.95**39] * 2)


def test_early_rounds_of_an_attack() -> None:
    """A share of its rounds; -1 for one that says nothing, so that even its start is exact, and in L0."""
    assert early_rounds(parse_attack("fmn:steps=99"), "l1") == 85
    assert early_rounds(parse_attack("fmn:steps=99"), "l0") == -1
    assert early_rounds(parse_attack("fab:steps=99"), "l2") == -1


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("folded", [False, True])
def test_the_form_round_trips_and_says_what_comes_first(channels_last: bool, folded: bool) -> None:
    """float32 itself, with an early model in bfloat16 that folds alike."""
    form = SearchForm(torch.float32, channels_last, folded, begins_low=True)
    assert form == parse_form(str(form))
    model = make_convnet(channels=3)
    x, _ = make_images(model, 8, (3, 12, 10))
    search = SearchModel(model, form)
    assert torch.allclose(search(x), model(x), atol=1e-4)
    assert search.early is not None
    assert search.early.form == SearchForm(torch.bfloat16, True, folded)
    low = search.early(x)
    assert 0 < (low - model(x)).abs().amax() <= 0.05 * model(x).abs().amax()
    assert SearchModel(model, SearchForm(torch.float32, channels_last, folded)).early is None


@pytest.mark.parametrize(("low_seconds", "expected"), [(0.1, True), (2.0, False)])
def test_it_is_taken_where_it_is_quicker(monkeypatch: pytest.MonkeyPatch, low_seconds: float, expected: bool) -> None:
    """By the timing, with the hardware, for a walk; never otherwise."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda _device: True)

    def seconds(model: SearchModel, _x: Tensor, _y: Tensor) -> float:
        return low_seconds if "bfloat16" in str(model.form) else 1.0 if str(model.form) == "float32" else 0.5

    monkeypatch.setattr(precision, "_seconds", seconds)
    model = make_convnet()
    x, y = make_images(model, 8)
    assert str(choose_form(model, x, y, exact=True, walks=True)[0].form) == str(LOW).replace(
        "" if expected else "+begins_bfloat16", ""
    )
    assert not choose_form(model, x, y, exact=True)[0].form.begins_low
    assert not choose_form(model, x, y, walks=True)[0].form.begins_low
    assert not choose_form(model, x, y, "float32", exact=True, walks=True)[0].form.begins_low
    monkeypatch.setattr(precision, "has_bfloat16", lambda _device: False)
    assert not choose_form(model, x, y, exact=True, walks=True)[0].form.begins_low
