"""NI-FGSM: two steps against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustgen.attacks.ni_fgsm import NIFGSM
from robustgen.threat import Norm
from tests.transfer_helpers import BALLS, check_two_steps, slope


def _ahead(model: nn.Module, here: Tensor, y: Tensor, g: Tensor, _turn: int, step: float) -> Tensor:
    return slope(model, here + step * 0.7 * g, y)


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_two_steps_are_those_of_the_paper(norm: Norm, eps: float) -> None:
    """The gradient at x + alpha mu g; what a round shows is the point that it asked."""
    states = check_two_steps(NIFGSM(steps=2, decay=0.7), norm, eps, _ahead)
    torch.testing.assert_close(states[1].x_adv, states[0].x_next)
    ahead = states[1].x_next + eps / 2 * 0.7 * states[1].g
    torch.testing.assert_close(states[2].x_adv, ahead)
    assert not torch.allclose(ahead, states[1].x_next, atol=1e-4)
