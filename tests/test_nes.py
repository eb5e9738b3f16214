"""NES: its estimate and its step against the formula in float64."""

from __future__ import annotations

import pytest
import torch

from robustgen.attacks.nes import NES
from robustgen.errors import SpecError
from robustgen.threat import Norm, ThreatModel
from tests.helpers import make_linear
from tests.query_helpers import double_task, outcomes_of, rounds_of


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.5)])
def test_two_steps_are_those_of_the_paper(norm: Norm, eps: float) -> None:
    """The probes lie at x +- sigma u; g is the mean of L u / sigma and 0.9 of the g before; the step is projected."""
    model, x, y = double_task((2, 5, 4))
    threat, samples, sigma = ThreatModel(norm, eps), 6, 0.01
    states = rounds_of(NES(samples=samples, sigma=sigma), model, x, y, threat, 2 * (samples + 1))
    points = [s.x_adv for s in states[1:]]
    here, before = x, torch.zeros_like(x)
    for turn in range(2):
        probes, iterate = points[turn * 7 : turn * 7 + 6], points[turn * 7 + 6]
        u = [(p - here) / sigma for p in probes]
        for plus, minus in zip(u[::2], u[1::2], strict=True):
            torch.testing.assert_close(plus, -minus, atol=1e-6, rtol=0)
        assert 0.7 < float(torch.stack(u).std()) < 1.3
        losses = [_loss(model(p), y) for p in probes]
        g = sum(loss.reshape(-1, 1, 1, 1) * v / sigma for loss, v in zip(losses, u, strict=True)) / samples
        g = before = g + 0.9 * before
        way = g.sign() if norm == "linf" else g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        expected = here + 0.2 * eps * way
        delta = expected - x
        if norm == "linf":
            expected = x + delta.clamp(-eps, eps)
        else:
            expected = x + delta * (eps / delta.flatten(1).norm(dim=1).clamp(min=eps)).reshape(-1, 1, 1, 1)
        torch.testing.assert_close(iterate, expected.clamp(0, 1), atol=1e-6, rtol=0)
        here = iterate
    seen = {float(p[0, 0, 0, 0]) for p in points}
    assert len(seen) == len(points), "every pair and every estimate draws anew"


def _loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The margin by which another class wins."""
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return others - own


def test_at_the_walls_a_pair_counts_by_what_was_sent() -> None:
    """Images a hair above black and a linear classifier: the estimate is (L+ - L-) (x+ - x-), summed."""
    model = make_linear((1, 6, 6), classes=2).double()
    x = torch.full((2, 1, 6, 6), 0.004, dtype=torch.float64)
    y, sigma = model(x).argmax(1), 0.01
    states = rounds_of(NES(samples=4), model, x, y, ThreatModel("l2", 0.5), 5)
    points = [s.x_adv for s in states[1:]]
    assert min(float(p.min()) for p in points) == 0
    total = torch.zeros_like(x)
    for plus, minus in ((points[0], points[1]), (points[2], points[3])):
        gap = _loss(model(plus), y) - _loss(model(minus), y)
        total += gap.reshape(-1, 1, 1, 1) * (plus - minus) / (2 * sigma) ** 2
    way = total / total.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(points[4], (x + 0.1 * way).clamp(0, 1), atol=1e-6, rtol=0)


def test_breaks_a_linear_classifier_near_the_optimum() -> None:
    """In L2, with as many probes as pixels, at 1.2 times the closed form all are broken, at 0.95 none."""
    text = "nes:queries=1300:samples=64"
    model = make_linear(classes=2)
    x = 0.5 + 0.1 * (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5)
    y = model(x).argmax(1)
    for factor, expected in ((1.2, True), (0.95, False)):
        for k, d in enumerate(model.distance(x, y, "l2").tolist()):
            (found,) = outcomes_of(text, model, x[k : k + 1], y[k : k + 1], ThreatModel("l2", factor * d))
            assert expected == found.broken, k


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queries": 0}, "nes: queries must be a whole number >= 1"), ({"samples": 3}, "samples come in pairs"),
        ({"sigma": 0.0}, "sigma must be positive"), ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"rel_step": 0.0}, "rel_step must be positive"),
    ],
)  # fmt: skip
def test_bad_parameters(options: dict[str, float], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=says):
        NES(**options)  # type: ignore[arg-type]
