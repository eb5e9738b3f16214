"""HopSkipJump: bisection, probes, direction and jump against the paper's formulas, and known optima."""

from __future__ import annotations

import math

import pytest
import torch

from robustgen.attacks.hopskipjump import HopSkipJump
from robustgen.errors import SpecError
from robustgen.threat import Norm, ThreatModel
from tests.nearest_helpers import FarLinear, nearest, ratios
from tests.query_helpers import rounds_of


def linear_task() -> tuple[FarLinear, torch.Tensor, torch.Tensor]:
    """Two images near grey in float64; noise of any grain is often of another class."""
    model = FarLinear((1, 6, 5), classes=3)
    x, y = model.images(2)
    return model, x.double(), y


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_rounds_are_those_of_the_paper(norm: Norm) -> None:
    """Each iteration: B_0 sqrt(t) probes at delta_t, v from their answers, a jump that is halved, a bisection back."""
    model, x, y = linear_task()
    d, b0, row = 30, 8, 0
    states = rounds_of(HopSkipJump(probes=b0), model, x, y, ThreatModel.unbounded(norm), 120)
    order: int | float = 2 if norm == "l2" else math.inf
    turns = 0
    for turn in range(1, 4):
        probing = [k for k, s in enumerate(states[:-1]) if int(s.phase[row]) == 2 and int(s.turn[row]) == turn]
        if not probing or probing[-1] + 1 >= len(states) - 1:
            break
        turns += 1
        assert int(b0 * math.sqrt(turn)) == len(probing)
        first = states[probing[0]]
        here, spread = first.here[row], float(first.spread[row])
        assert bool(model(here[None]).argmax(1) != y[row])
        if turn > 1:
            landed = float(torch.linalg.vector_norm((first.far[row] - x[row]).flatten(), ord=order))
            assert spread == pytest.approx(landed / d)
        else:
            assert spread == pytest.approx(0.1)
        sent = torch.stack([states[k + 1].x_adv[row] for k in probing])
        u = (sent - here) / spread
        inside = ((sent > 0) & (sent < 1)).flatten(1).all(1)
        lengths = u.flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths[inside], torch.ones_like(lengths[inside]), atol=1e-5, rtol=0)
        phi = torch.where(model(sent).argmax(1) != y[row], 1.0, -1.0).double()
        mean = phi.mean()
        weight = phi if float(mean.abs()) == 1 else phi - mean
        v = (weight[:, None, None, None] * u).sum(0)
        v = v.sign() if norm == "linf" else v / v.norm()
        after = states[probing[-1] + 1]
        torch.testing.assert_close(after.signed[row], v, atol=1e-6, rtol=0)
        xi = float(torch.linalg.vector_norm((here - x[row]).flatten(), ord=order)) / math.sqrt(turn)
        for k in range(probing[-1] + 1, len(states) - 1):
            torch.testing.assert_close(states[k + 1].x_adv[row], (here + xi * v).clamp(0, 1), atol=1e-6, rtol=0)
            if bool(states[k + 1].wrong[row]):
                break
            xi /= 2
    assert turns >= 2


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_bisection_ends_at_the_boundary(norm: Norm) -> None:
    """`here` is misclassified, and a little nearer to x it is not."""
    model, x, y = linear_task()
    attack = HopSkipJump()
    states = rounds_of(attack, model, x, y, ThreatModel.unbounded(norm), 30)
    at = states[-1]
    assert (at.phase == 2).all()
    part = attack.precision(x, norm)
    assert part == pytest.approx(30 ** (-1.5 if norm == "l2" else -2))
    assert (model(at.here).argmax(1) != y).all()
    gap = at.here - x
    if norm == "l2":
        nearer = x + gap * ((at.high - part) / at.high).reshape(-1, 1, 1, 1)
    else:
        reach = ((at.high - part) * (at.far - x).flatten(1).abs().amax(1)).reshape(-1, 1, 1, 1)
        nearer = torch.minimum(torch.maximum(at.far, x - reach), x + reach)
    assert (model(nearer).argmax(1) == y).all()


@pytest.mark.parametrize(("norm", "most"), [("l2", 1.1), ("linf", 1.4)])
def test_linear_optimum(norm: Norm, most: float) -> None:
    """Never below the closed form, and near it with a budget for a few iterations."""
    model = FarLinear((1, 6, 6), classes=2)
    x, y = model.images(4)
    ratio = ratios(nearest("hopskipjump:queries=1000:probes=50", model, x, y, norm), model.exact(x, y, norm))
    assert ratio.min() > 1 - 1e-4
    assert ratio.max() <= most


def test_bad_parameters() -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match="hopskipjump: queries must be"):
        HopSkipJump(queries=0)
    with pytest.raises(SpecError, match="probes must be at least 2"):
        HopSkipJump(probes=1)
