"""DI-FGSM: two steps against the formula in float64, with the transformation by torch's interpolation."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.attacks.di_fgsm import DIFGSM
from robustgen.errors import SpecError
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel
from tests.query_helpers import rounds_of
from tests.transfer_helpers import BALLS, SHAPE, check_two_steps

SMALLEST, PROBABILITY = 0.5, 0.6


def transformed(x: Tensor, turn: int) -> Tensor:
    """T(x; p), row by row: nearest neighbours to a random size, zeros around; or x itself."""
    rows = []
    for image, draw in zip(x, ExampleRng.of(0, range(len(x))).uniform((4,), "di", turn).tolist(), strict=True):
        if draw[0] >= PROBABILITY:
            rows.append(image)
            continue
        (height, width), sides, places = image.shape[1:], [], []
        for full, shift in ((height, draw[2]), (width, draw[3])):
            least = max(1, round(SMALLEST * full))
            sides.append(least + int(draw[1] * (full - least + 1)))
            places.append(int(shift * (full - sides[-1] + 1)))
        small = F.interpolate(image[None], size=sides, mode="nearest")[0]
        pad = (places[1], width - sides[1] - places[1], places[0], height - sides[0] - places[0])
        rows.append(F.pad(small, pad))
    return torch.stack(rows)


def _through(model: nn.Module, here: Tensor, y: Tensor, _g: Tensor, turn: int, _step: float) -> Tensor:
    leaf = here.detach().requires_grad_()
    loss = F.cross_entropy(model(transformed(leaf, turn)), y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_two_steps_are_those_of_the_paper(norm: Norm, eps: float) -> None:
    """The gradient goes through T; what a round shows is T(x)."""
    attack = DIFGSM(steps=2, decay=0.7, probability=PROBABILITY, smallest=SMALLEST)
    states = check_two_steps(attack, norm, eps, _through)
    for turn in range(2):
        torch.testing.assert_close(states[turn + 1].x_adv, transformed(states[turn].x_next, turn))
    assert any(not torch.equal(s.x_adv, before.x_next) for before, s in pairwise(states))


def test_without_probability_it_is_mi_fgsm() -> None:
    """probability=0 never transforms."""
    from robustgen.attacks.mi_fgsm import MIFGSM
    from tests.query_helpers import double_task

    model, x, y = double_task(SHAPE)
    ours, theirs = (
        rounds_of(attack, model, x, y, ThreatModel("linf", 0.02), 3)[-1]
        for attack in (DIFGSM(steps=3, probability=0.0), MIFGSM(steps=3))
    )
    assert torch.equal(ours.x_next, theirs.x_next)


@pytest.mark.parametrize("options", [{"probability": 1.5}, {"smallest": 0.0}])
def test_bad_parameters(options: dict[str, float]) -> None:
    """One sentence."""
    with pytest.raises(SpecError, match=r"probability must be in \[0, 1\] and smallest in \(0, 1\]"):
        DIFGSM(**options)  # type: ignore[arg-type]
