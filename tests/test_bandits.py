"""Bandits: two steps against Algorithms 1 to 3 written out in float64, with and without exponentiated gradients."""

from __future__ import annotations

import math

import pytest
import torch

from robustgen.attacks.bandits import Bandits
from robustgen.errors import SpecError
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel
from tests.query_helpers import double_task, rounds_of


def spread(tiles: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Each value over two by two pixels, by index."""
    rows, columns = torch.arange(height) // 2, torch.arange(width) // 2
    return tiles[:, :, rows][:, :, :, columns]


def _loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The margin by which another class wins."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]


@pytest.mark.parametrize(("norm", "eps", "step"), [("linf", 0.02, 0.002), ("l2", 0.3, 0.03)])
def test_two_steps_are_those_of_the_paper(norm: Norm, eps: float, step: float) -> None:
    """Probes, Delta, the update of v and the step of x; the iterate itself is not queried while nothing is missed."""
    shape = (2, 5, 4)
    model, x, y = double_task(shape)
    states = rounds_of(Bandits(), model, x, y, ThreatModel(norm, eps), 4)
    assert not states[-1].missed.any()
    v, here, rng = torch.zeros(3, 2, 3, 2, dtype=torch.float64), x, ExampleRng.of(0, range(3))
    for turn in range(2):
        u = rng.normal((2, 3, 2), "bandits", 2 * turn).double() / math.sqrt(12)
        found = []
        for k, side in enumerate((1, -1)):
            q = spread(v + side * u, 5, 4)
            point = here + 0.1 * q / q.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            torch.testing.assert_close(states[2 * turn + k + 1].x_adv, point.clamp(0, 1), atol=1e-6, rtol=0)
            found.append(_loss(model(point), y))
        delta = ((found[0] - found[1]) / 0.1).reshape(-1, 1, 1, 1) * u
        if norm == "linf":
            p = (v + 1) / 2
            up, down = p * torch.exp(10 * delta), (1 - p) * torch.exp(-10 * delta)
            v = 2 * up / (up + down) - 1
        else:
            v = v + 10 * delta
        torch.testing.assert_close(states[2 * turn + 2].prior, v, atol=1e-6, rtol=0)
        wide = spread(v, 5, 4)
        way = wide.sign() if norm == "linf" else wide / wide.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        here = here + step * way
        torch.testing.assert_close(states[2 * turn + 2].here, here, atol=1e-6, rtol=0)


def test_large_logits_overflow_nothing() -> None:
    """Logits ten thousand times as large: v stays within [-1, 1], and finds back from the edge."""
    model, x, y = double_task((2, 5, 4))
    states = rounds_of(Bandits(), lambda z: 1e4 * model(z), x, y, ThreatModel("linf", 0.02), 40)
    priors = torch.stack([state.prior for state in states])
    assert priors.isfinite().all()
    assert priors.abs().max() <= 1
    assert ((priors[1:] * priors[:-1]) < -0.5).any()


def test_the_iterate_is_asked_after_a_miss() -> None:
    """A probe that is misclassified makes the next query the iterate; rows without one go on probing."""
    model, x, y = double_task((2, 5, 4))
    y = y.clone()
    y[0] = (y[0] + 1) % 4  # misclassified from the first probe on
    states = rounds_of(Bandits(), model, x, y, ThreatModel("linf", 0.02), 3)
    assert torch.equal(states[2].here[0], states[3].x_adv[0])
    assert not torch.equal(states[2].here[1], states[3].x_adv[1])


@pytest.mark.parametrize(
    ("options", "says"),
    [({"queries": 0}, "bandits: queries"), ({"tile": 0}, "tile is a number"), ({"rate": 0.0}, "must be positive")],
)
def test_bad_parameters(options: dict[str, float], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=says):
        Bandits(**options)  # type: ignore[arg-type]
