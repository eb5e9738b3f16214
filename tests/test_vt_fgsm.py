"""VT-FGSM: two steps against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustgen.attacks.vt_fgsm import VTFGSM
from robustgen.errors import SpecError
from robustgen.rng import ExampleRng
from robustgen.threat import Norm
from tests.transfer_helpers import BALLS, SHAPE, check_two_steps, slope


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_two_steps_are_those_of_the_paper(norm: Norm, eps: float) -> None:
    """g takes grad + v; v is the mean gradient of three neighbours of the iterate before less the gradient there."""
    pixels, held = torch.Size(SHAPE).numel(), {"v": torch.zeros(3, *SHAPE).double()}
    reach = 2.0 * eps / (1 if norm == "linf" else pixels**0.5)

    def tuned(model: nn.Module, here: Tensor, y: Tensor, _g: Tensor, turn: int, _step: float) -> Tensor:
        rng = ExampleRng.of(0, range(3))
        offsets = [reach * (2 * rng.uniform(SHAPE, f"vt {k}", turn).double() - 1) for k in range(3)]
        grad, before = slope(model, here, y), held["v"]
        held["v"] = sum(slope(model, here + r, y) for r in offsets) / 3 - grad
        return grad + before

    check_two_steps(VTFGSM(steps=2, decay=0.7, samples=3, beta=2.0), norm, eps, tuned)


@pytest.mark.parametrize(("options", "says"), [({"samples": 0}, "samples must be"), ({"beta": 0.0}, "beta must be")])
def test_bad_parameters(options: dict[str, float], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=says):
        VTFGSM(**options)  # type: ignore[arg-type]
