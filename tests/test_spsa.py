"""SPSA: its estimate against the formula, its steps against torch's Adam, in float64."""

from __future__ import annotations

import pytest
import torch

from robustgen.attacks.spsa import SPSA
from robustgen.errors import SpecError
from robustgen.threat import ThreatModel
from tests.query_helpers import double_task, rounds_of


def test_three_steps_are_those_of_adam() -> None:
    """Probes at x +- delta v with signs v; g the mean over pairs of (L+ - L-) / (2 delta) v; then Adam up the loss."""
    model, x, y = double_task((2, 5, 4))
    samples, delta, eps = 4, 0.01, 0.05
    states = rounds_of(SPSA(samples=samples), model, x, y, ThreatModel("linf", eps), 3 * (samples + 1))
    points = [s.x_adv for s in states[1:]]
    own = torch.nn.Parameter(x.clone())
    adam = torch.optim.Adam([own], lr=0.2 * eps, maximize=True)
    for turn in range(3):
        here, probes = own.detach().clone(), points[turn * 5 : turn * 5 + 4]
        g = torch.zeros_like(x)
        for plus, minus in zip(probes[::2], probes[1::2], strict=True):
            v = (plus - here) / delta
            torch.testing.assert_close(v.abs(), torch.ones_like(v), atol=1e-6, rtol=0)
            torch.testing.assert_close(minus, here - delta * v, atol=1e-9, rtol=0)
            rise = (_loss(model(plus), y) - _loss(model(minus), y)) / (2 * delta)
            g += rise.reshape(-1, 1, 1, 1) * v / 2
        own.grad = g
        adam.step()
        with torch.no_grad():
            own.copy_(torch.minimum(torch.maximum(own, x - eps), x + eps).clamp(0, 1))
        torch.testing.assert_close(points[turn * 5 + 4], own.detach(), atol=1e-5, rtol=0)


def _loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The margin by which another class wins."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]


def test_steps_in_l2_have_their_length() -> None:
    """A fifth of eps, and never outside the ball."""
    model, x, y = double_task((1, 6, 5))
    states = rounds_of(SPSA(samples=2), model, x, y, ThreatModel("l2", 0.5), 60)
    moved = (states[3].here - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), atol=1e-6, rtol=0)
    assert float((states[-1].here - x).flatten(1).norm(dim=1).max()) <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queries": 0}, "spsa: queries must be"), ({"samples": 0}, "samples come in pairs"),
        ({"delta": -1.0}, "delta must be positive"),
    ],
)  # fmt: skip
def test_bad_parameters(options: dict[str, float], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=says):
        SPSA(**options)  # type: ignore[arg-type]
