"""The engine: full batches, early leaving, honest verdicts and honest counting."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from robustgen.attacks.base import Query, QueryModel, State
from robustgen.attacks.losses import CE
from robustgen.engine import Outcome, run
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import make_convnet, make_images, make_linear

THREAT = ThreatModel("linf", 0.1)


class Threshold(nn.Module):
    """Class 1 where the mean exceeds one half; counts the images it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        z = 100 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z], 1)


@dataclass(frozen=True, kw_only=True)
class Climb:
    """Raises all pixels by `stride` a round, wherever that leads; for tests."""

    stride: float = 0.01
    rounds: int = 8
    restarts: int = 1

    def init(self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng) -> State:
        return State.start(x, y, threat, rng)

    def step(self, oracle: QueryModel, s: State) -> State:
        x_adv = s.x + self.stride * (s.i + 1).reshape(-1, 1, 1, 1)
        return replace(s, x_adv=x_adv, logits=oracle.logits(x_adv), i=s.i + 1)


def climb(levels: list[float], attack: Climb, model: nn.Module, batch_size: int = 4) -> dict[int, Outcome]:
    """Attack grey images of these levels; outcome by id."""
    x = torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    y = torch.zeros(len(levels), dtype=torch.int64)
    outcomes: dict[int, Outcome] = {}

    def finish(outcome: Outcome) -> None:
        assert outcome.id not in outcomes, "every example finishes once"
        outcomes[outcome.id] = outcome

    run(
        attack, Oracle(model), Judge(Threshold(), THREAT), lambda ids: (x[list(ids)], y[list(ids)]),
        range(len(levels)), THREAT, seed=0, batch_size=batch_size, finish=finish,
    )  # fmt: skip
    return outcomes


def _fate(outcome: Outcome) -> tuple[object, ...]:
    return (outcome.broken, outcome.round, outcome.restart, outcome.forwards, outcome.distance)


def test_rows_leave_when_broken_and_others_take_their_places() -> None:
    """The round of the break is exact, the batch stays full while anybody waits, costs are per example."""
    model = Threshold()
    levels = [0.495, 0.4, 0.475, 0.455] * 5
    outcomes = climb(levels, Climb(), model, batch_size=4)
    for id_, level in enumerate(levels):
        rounds = {0.495: 0, 0.475: 2, 0.455: 4}.get(level)
        assert (rounds is not None) == outcomes[id_].broken
        assert rounds == outcomes[id_].round
        assert outcomes[id_].forwards == (8 if rounds is None else rounds + 1)
    assert sum(model.batches) == sum(o.forwards for o in outcomes.values())
    needed = sum(o.forwards for o in outcomes.values()) / 4
    assert len(model.batches) <= needed + 8, "batches ran half empty"


def test_restarts_spend_their_rounds_and_say_which_succeeded() -> None:
    """An unbroken example starts again as often as it may."""
    outcomes = climb([0.3, 0.495], Climb(restarts=3), Threshold())
    assert (False, 24) == (outcomes[0].broken, outcomes[0].forwards)
    assert (True, 0, 1) == (outcomes[1].broken, outcomes[1].restart, outcomes[1].forwards)


def test_points_outside_the_threat_model_never_count() -> None:
    """An attack that leaves the ball breaks nothing by it."""
    outcomes = climb([0.3], Climb(stride=0.11), Threshold())
    assert not outcomes[0].broken
    beyond_the_box = climb([0.45], Climb(stride=0.6, rounds=1), Threshold())
    assert not beyond_the_box[0].broken


def test_the_judge_overrules_the_search_form() -> None:
    """Where the searched network errs but the reference does not, nothing is broken."""

    class Liar(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    outcomes = climb([0.3, 0.2], Climb(), Liar())
    assert not any(o.broken for o in outcomes.values())


def test_the_smallest_margin_inside_is_known() -> None:
    """How near an attack came, over restarts; points outside the threat model do not count."""
    outcomes = climb([0.3, 0.4], Climb(restarts=2), Threshold())
    assert outcomes[0].margin == pytest.approx(200 * (0.5 - 0.38), rel=1e-4)
    assert outcomes[1].margin == pytest.approx(200 * (0.5 - 0.48), rel=1e-4)
    beyond = climb([0.3], Climb(stride=0.03, rounds=6), Threshold())
    assert beyond[0].margin == pytest.approx(200 * (0.5 - 0.39), rel=1e-4)


def test_the_smallest_margin_is_kept_when_later_points_are_farther() -> None:
    """An attack that steps back is remembered for where it was nearest."""

    @dataclass(frozen=True, kw_only=True)
    class Swing(Climb):
        def step(self, oracle: QueryModel, s: State) -> State:
            x_adv = s.x + self.stride * (s.i == 1).float().reshape(-1, 1, 1, 1)
            return replace(s, x_adv=x_adv, logits=oracle.logits(x_adv), i=s.i + 1)

    outcomes = climb([0.3], Swing(stride=0.05, rounds=4), Threshold())
    assert outcomes[0].margin == pytest.approx(200 * (0.5 - 0.35), rel=1e-4)


def test_the_judge_itself_refuses_points_outside() -> None:
    """Misclassified is not enough: each way to leave the threat model is refused by the judge, whoever calls it."""
    x, y = torch.full((4, 1, 2, 2), 0.45), torch.zeros(4, dtype=torch.int64)
    shift = torch.tensor([0.09, 0.2, 0.6, torch.nan]).reshape(-1, 1, 1, 1)
    verdict = Judge(Threshold(), THREAT)(x, y, x + shift)
    assert [True, False, False, False] == verdict.broken.tolist()
    assert [1, 1, 1, -1] == verdict.prediction.tolist()


def test_a_sick_row_is_reported_and_the_others_go_on() -> None:
    """NaN in the middle of an attack costs one example, not the run, and is no success."""

    class Sick(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            sick = (x.flatten(1).mean(1) > 0.225) & (x.flatten(1).mean(1) < 0.3)
            return torch.where(sick[:, None], torch.nan, logits)

    outcomes = climb([0.21, 0.495, 0.4], Climb(), Sick())
    assert "not finite" in str(outcomes[0].error)
    assert not outcomes[0].broken
    assert outcomes[1].broken
    assert outcomes[2].error is None


def test_a_judge_without_finite_logits_finds_nothing_broken() -> None:
    """NaN from the reference model is prediction -1 and no success."""
    nan = nn.Module()
    nan.forward = lambda x: torch.full((len(x), 3), torch.nan)  # type: ignore[method-assign]
    x = torch.rand(4, 1, 3, 3)
    verdict = Judge(nan, THREAT)(x, torch.zeros(4, dtype=torch.int64), x)
    assert [-1] * 4 == verdict.prediction.tolist()
    assert not verdict.broken.any()


def test_oracle_averages_over_draws_and_counts_them() -> None:
    """EOT: the mean of gradients and logits of `eot` draws, each counted."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.draw = 0.0

        def forward(self, x: Tensor) -> Tensor:
            self.draw += 1
            return torch.stack([self.draw * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)

    oracle = Oracle(Noisy(), eot=3)
    x = torch.ones(2, 1, 1, 2)
    query: Query = oracle.grad(x, torch.zeros(2, dtype=torch.int64), lambda z, y: z[:, 0])
    torch.testing.assert_close(query.grad, torch.full_like(x, 2.0))  # the mean of 1, 2, 3
    torch.testing.assert_close(query.logits[:, 0], torch.full((2,), 4.0))
    assert (6, 6) == (oracle.cost.forwards, oracle.cost.backwards)
    oracle.logits(x)
    assert (12, 6) == (oracle.cost.forwards, oracle.cost.backwards)


def test_a_loss_without_gradient_gives_zero() -> None:
    """A constant model is queried like any other."""
    constant = nn.Module()
    constant.forward = lambda x: torch.zeros(len(x), 3)  # type: ignore[method-assign]
    query = Oracle(constant).grad(torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), CE())
    assert not query.grad.any()


@pytest.mark.parametrize("make", [make_linear, make_convnet])
def test_gradients_match_finite_differences(make: type[nn.Module]) -> None:
    """In float64, against a central difference along random directions."""
    model = make().double()
    x, y = make_images(model.float(), 3)
    model, x = model.double(), x.double()
    query = Oracle(model).grad(x, y, CE())
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h = 1e-6
    slope = (CE()(model(x + h * direction), y) - CE()(model(x - h * direction), y)) / (2 * h)
    torch.testing.assert_close((query.grad * direction).flatten(1).sum(1), slope, rtol=1e-5, atol=1e-8)


def test_exhausted_memory_halves_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    """Too large a batch is split until it fits, with a warning and the same outcomes; other errors pass through."""

    class Small(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 3:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")
            return super().forward(x)

    levels = [0.495, 0.4, 0.475, 0.455, 0.3] * 4
    outcomes = climb(levels, Climb(), Small(), batch_size=16)
    assert "memory is exhausted" in caplog.text
    expected = climb(levels, Climb(), Threshold(), batch_size=16)
    assert [_fate(expected[k]) for k in range(20)] == [_fate(outcomes[k]) for k in range(20)]

    class Wrong(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        climb([0.4, 0.3], Climb(), Wrong())
