"""DDN: its radius and its steps, state by state, against Algorithm 1 written out in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from robustgen.attacks.ddn import DDN
from robustgen.errors import SpecError
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import make_convnet, make_images


def test_every_step_is_that_of_the_paper() -> None:
    """Direction, radius and clipping of 25 steps, recomputed from the point before by autograd."""
    model = make_convnet(classes=4).double()
    x, y = make_images(make_convnet(classes=4), 8, (1, 8, 8))
    x, attack, oracle = x.double(), DDN(steps=25), Oracle(model)
    states = [attack.init(oracle, x, y, ThreatModel.unbounded("l2"), ExampleRng.of(0, range(8)))]
    for _ in range(attack.rounds):
        states.append(attack.step(oracle, states[-1]))
    assert torch.equal(states[0].x_next, x)
    seen: set[bool] = set()
    for k, (before, after) in enumerate(pairwise(states)):
        for row in range(8):
            point = before.x_next[row : row + 1].clone().requires_grad_()
            logits = model(point)
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, y[row : row + 1]), point)
            wrong = int(logits.argmax()) != int(y[row])
            seen.add(wrong)
            assert float(after.radius[row]) == pytest.approx(float(before.radius[row]) * (0.95 if wrong else 1.05))
            alpha = 0.01 + 0.99 * (1 + math.cos(math.pi * k / 25)) / 2
            delta = point.detach()[0] - x[row] + alpha * grad[0] / grad.norm()
            expected = (x[row] + after.radius[row] * delta / delta.norm()).clamp(0, 1)
            torch.testing.assert_close(after.x_next[row], expected, atol=1e-6, rtol=0)
    assert {True, False} == seen


def test_restarts_begin_elsewhere() -> None:
    """The first at x, the second at a random point near it, each example at its own."""
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    state = DDN().init(Oracle(make_convnet()), x, y, ThreatModel.unbounded("l2"), ExampleRng.of(0, [0, 1], [1, 1]))
    assert 0.05 < float((state.x_next - x).abs().max()) <= 0.1
    assert not torch.equal(state.x_next[0], state.x_next[1])


@pytest.mark.parametrize("options", [{"steps": 0}, {"restarts": 0}, {"gamma": 1.0}, {"gamma": 0.0}, {"radius": 0.0}])
def test_bad_parameters(options: dict[str, float]) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match="ddn: "):
        DDN(**options)  # type: ignore[arg-type]
