"""SI-FGSM: two steps against the formula in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.attacks.si_fgsm import SIFGSM
from robustgen.errors import SpecError
from robustgen.threat import Norm
from tests.transfer_helpers import BALLS, check_two_steps


def _over_copies(model: nn.Module, here: Tensor, y: Tensor, _g: Tensor, _turn: int, _step: float) -> Tensor:
    """Autograd through the mean of J(x / 2^i), i = 0, 1, 2."""
    leaf = here.detach().requires_grad_()
    losses = [F.cross_entropy(model(leaf / 2**i), y, reduction="sum") for i in range(3)]
    (grad,) = torch.autograd.grad(torch.stack(losses).mean(), leaf)
    return grad


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_two_steps_are_those_of_the_paper(norm: Norm, eps: float) -> None:
    """The gradient of the mean loss over the darker copies."""
    check_two_steps(SIFGSM(steps=2, decay=0.7, copies=3), norm, eps, _over_copies)


def test_bad_parameters() -> None:
    """One sentence."""
    with pytest.raises(SpecError, match="si-fgsm: copies must be a whole number"):
        SIFGSM(copies=0)
