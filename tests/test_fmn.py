"""FMN: the walk reaches the closed-form distance of a linear classifier, and its radius obeys the algorithm."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from robustgen.attacks.fmn import FMN, FMNT, _first_length
from robustgen.errors import SpecError
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel
from tests.helpers import make_convnet, make_images, make_linear

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


def walk(attack: FMN, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, threat: ThreatModel) -> list[Any]:
    """Every state of one restart."""
    oracle = Oracle(model)
    states: list[Any] = [attack.init(oracle, x, y, threat, ExampleRng.of(0, range(len(x))))]
    for _ in range(attack.rounds):
        states.append(attack.step(oracle, states[-1]))
    return states


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_nearest_point_of_a_linear_classifier(norm: Norm) -> None:
    """The smallest misclassified distance is that of the nearest hyperplane, to a few per cent."""
    model = make_linear((1, 8, 8), classes=2)
    x, y = make_images(model, 20, (1, 8, 8))
    x = 0.5 + 0.2 * (x - 0.5)  # far from the walls of the box
    y = model(x).argmax(1)
    logits, weight = model(x), model.weight
    gap = (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])).squeeze(1)
    exact = gap / torch.linalg.vector_norm(weight[0] - weight[1], ord=DUAL[norm])
    ratios = []
    for k in range(20):
        threat = ThreatModel(norm, 0.7 * float(exact[k]))
        last = walk(FMN(steps=100), model, x[k : k + 1], y[k : k + 1], threat)[-1]
        ratios.append(float(last.best) / float(exact[k]))
    assert min(ratios) > 1 - 1e-4
    assert sorted(ratios)[10] < 1.05
    assert max(ratios) < 1.5


def test_radius_shrinks_where_misclassified_and_grows_elsewhere() -> None:
    """Lines 7 to 13, state by state: the bound of gamma, and the tangent distance before the first success."""
    model = make_convnet(classes=4)
    x, y = make_images(model, 12, (1, 8, 8))
    threat = ThreatModel("l2", 0.05)
    states = walk(FMN(steps=30), model, x, y, threat)
    seen_shrink = seen_grow = seen_tangent = False
    for before, after in pairwise(states):
        length = (before.x_next - x).flatten(1).norm(dim=1)
        wrong = after.logits.argmax(1) != y
        shrink = wrong & before.radius.isfinite()
        assert (after.radius[shrink] <= before.radius[shrink] * (1 - 0.0099)).all()
        assert (after.best[wrong] <= length[wrong] + 1e-6).all()
        tangent = ~wrong & ~before.best.isfinite()
        assert (after.radius[tangent] > length[tangent]).all()
        grow = ~wrong & before.best.isfinite()
        assert (after.radius[grow] >= before.radius[grow] * 1.0099).all()
        inside = (after.x_next - x).flatten(1).norm(dim=1) <= after.radius.clamp(min=threat.eps) * (1 + 1e-5)
        assert inside.all()
        seen_shrink |= bool(shrink.any())
        seen_grow |= bool(grow.any())
        seen_tangent |= bool(tangent.any())
    assert seen_shrink
    assert seen_grow
    assert seen_tangent


def test_the_ball_never_shrinks_below_the_threat_model() -> None:
    """Where the boundary is nearer than eps, the radius falls below eps, and steps still use all of the ball."""
    model = make_convnet(classes=4)
    x, y = make_images(model, 12, (1, 8, 8))
    threat, seen = ThreatModel("l2", 3.0), 0
    for state in walk(FMN(steps=30), model, x, y, threat)[1:-12]:
        length = (state.x_next - x).flatten(1).norm(dim=1)
        seen += int((length > 1.2 * state.radius).sum())
        assert (length <= state.radius.clamp(min=threat.eps) * (1 + 1e-5)).all()
    assert seen > 10


def test_targets_are_the_nearest_classes_in_turn() -> None:
    """Restart r aims at the r-th wrong class by logit, and begins again when there are no more."""
    model = make_linear((1, 8, 8), classes=4)
    x, y = make_images(model, 9, (1, 8, 8))
    order = model(x).scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    for restart in range(5):
        rng = ExampleRng.of(0, range(9), [restart] * 9)
        assert torch.equal(order[:, restart % 3], FMNT().aim(Oracle(model), x, y, rng))
    single = make_linear((1, 8, 8), classes=1)
    assert torch.equal(0 * y, FMNT().aim(Oracle(single), x, 0 * y, ExampleRng.of(0, range(9))))


@pytest.mark.parametrize("options", [{"steps": 0}, {"restarts": 0}, {"first_step": 0.0}, {"first_step": float("inf")}])
def test_bad_parameters(options: dict[str, Any]) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match="fmn: "):
        FMN(**options)


@pytest.mark.parametrize(
    ("norm", "reach", "expected", "one_class"),
    [
        ("l2", 5.0, 10.0, 5.0), ("l2", 0.04, 0.1, 0.1), ("l2", 1e9, 12.0, 12.0), ("l1", 0.1, 0.3, 0.3),
        ("l1", 8.0, 8.0, 2.0), ("linf", 0.5, 6.0, 6.0), ("linf", 0.01, 1.0, 1.0), ("l0", 5.0, 1.0, 1.0),
    ],
)  # fmt: skip
def test_the_first_step_is_as_long_as_the_first_radius(
    norm: Norm, reach: float, expected: float, one_class: float
) -> None:
    """Twice as long in L2, at least 1 (0.1 in L2, 0.3 in L1), at most the diagonal, which is 12 here; in L0 always 1.

    Towards one class half of that in L2, a quarter in L1.
    """
    x, y = torch.zeros(2, 1, 12, 12), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel.unbounded(norm)
    state = FMN().init(Oracle(make_linear((1, 12, 12))), x, y, threat, ExampleRng.of(0, range(2)))
    state.reach = torch.full((2,), reach)
    torch.testing.assert_close(_first_length(state, FMN.first_shares), torch.full((2,), expected))
    torch.testing.assert_close(_first_length(state, FMNT.first_shares), torch.full((2,), one_class))
