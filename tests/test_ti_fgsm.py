"""TI-FGSM: two steps against the formula in float64, and its kernel against the sum over shifted copies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustgen.attacks.ti_fgsm import TIFGSM, gaussian
from robustgen.errors import SpecError
from robustgen.threat import Norm
from tests.transfer_helpers import BALLS, check_two_steps, slope

RADIUS = 2


def _smoothed(model: nn.Module, here: Tensor, y: Tensor, _g: Tensor, _turn: int, _step: float) -> Tensor:
    """sum_ij W_ij shift_ij(grad), with W a Gaussian of sum 1, written out."""
    grad = slope(model, here, y)
    height, width = grad.shape[2:]
    weights = {
        (i, j): math.exp(-(i * i + j * j) / (2 * RADIUS**2 / 3))
        for i in range(-RADIUS, RADIUS + 1)
        for j in range(-RADIUS, RADIUS + 1)
    }
    padded = torch.zeros(*grad.shape[:2], height + 2 * RADIUS, width + 2 * RADIUS).double()
    padded[:, :, RADIUS : RADIUS + height, RADIUS : RADIUS + width] = grad
    total = torch.zeros_like(grad)
    for (i, j), w in weights.items():
        total += w * padded[:, :, RADIUS + i : RADIUS + i + height, RADIUS + j : RADIUS + j + width]
    return total / sum(weights.values())


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_two_steps_are_those_of_the_paper(norm: Norm, eps: float) -> None:
    """The gradient convolved with the kernel is what is accumulated."""
    check_two_steps(TIFGSM(steps=2, decay=0.7, radius=RADIUS), norm, eps, _smoothed)


def test_the_kernel_scales_with_the_image() -> None:
    """7 pixels at 299, 1 for small images; sum 1."""
    assert 1.0 == pytest.approx(float(gaussian(7).sum()))
    assert 15 == len(gaussian(7))
    assert math.exp(-1.5) == pytest.approx(float(gaussian(1)[0] / gaussian(1)[1]))
    attack = TIFGSM()
    from robustgen.attacks.momentum import Look

    for side, radius in ((299, 7), (28, 1), (8, 1)):
        spike = torch.zeros(1, 1, side, side)
        spike[0, 0, side // 2, side // 2] = 1
        _, grad = attack.tune(None, Look(spike, spike, spike))
        assert 2 * radius + 1 == int((grad[0, 0].sum(0) > 0).sum())


def test_bad_parameters() -> None:
    """One sentence."""
    with pytest.raises(SpecError, match="radius is a number of pixels"):
        TIFGSM(radius=-1)
