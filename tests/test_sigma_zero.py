"""sigma-zero: the slope of its smooth count, its threshold, and that pixels go back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from robustgen.attacks.sigma_zero import SigmaZero
from robustgen.errors import SpecError
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.nearest_helpers import FarLinear, nearest, ratios


def test_slope_of_the_count() -> None:
    """eq. (5) with whole pixels, against autograd; 0 where nothing has moved."""
    g = torch.Generator().manual_seed(0)
    delta = (0.1 * torch.randn(3, 3, 4, 5, generator=g, dtype=torch.float64)).requires_grad_()
    length = delta.square().sum(1)
    (expected,) = torch.autograd.grad((length / (length + 1e-3)).mean((1, 2)).sum(), delta)
    torch.testing.assert_close(SigmaZero()._count_slope(delta.detach()), expected)
    assert not SigmaZero()._count_slope(torch.zeros(1, 3, 4, 5)).any()


def test_threshold_and_step() -> None:
    """tau falls by 0.01 eta after a failure and rises after a success; what moved less than tau stands at x."""
    model = FarLinear((3, 5, 4), classes=2)
    x, y = model.images(4)
    attack, oracle = SigmaZero(steps=80), Oracle(model)
    states = [attack.init(oracle, x, y, ThreatModel.unbounded("l0"), ExampleRng.of(0, range(4)))]
    for _ in range(attack.rounds):
        states.append(attack.step(oracle, states[-1]))
    seen: set[bool] = set()
    for k, (before, after) in enumerate(pairwise(states)):
        wrong = after.logits.argmax(1) != y
        eta = 0.1 + 0.9 * (1 + np.cos(np.pi * k / 80)) / 2
        torch.testing.assert_close(after.tau, before.tau + torch.where(wrong, 0.01, -0.01) * eta, atol=1e-6, rtol=0)
        moved = (after.x_next - x).abs().amax(1)
        assert ((moved == 0) | (moved >= after.tau[:, None, None])).all()
        seen |= set(wrong.tolist())
    assert {True, False} == seen


def test_fewest_pixels_of_a_linear_classifier() -> None:
    """RGB images whose optimum is several pixels: within 1.05 times it in three of four, else one more."""
    model = FarLinear((3, 12, 11), classes=2)
    x, y = model.images(12)
    exact = model.exact(x, y, "l0")
    assert exact.min() >= 2
    ratio = ratios(nearest("sigma-zero", model, x, y, "l0"), exact)
    assert ratio.min() >= 1
    assert (ratio <= 1.05).mean() >= 0.75
    assert (ratio * exact - exact).max() <= 1


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"restarts": 0}, {"sigma": 0.0}, {"first_step": 0.0}, {"tau": 2.0}, {"tau_step": -1.0}]
)
def test_bad_parameters(options: dict[str, float]) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match="sigma-zero: "):
        SigmaZero(**options)  # type: ignore[arg-type]
