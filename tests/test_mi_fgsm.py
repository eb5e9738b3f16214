"""MI-FGSM: two steps against the formula in float64, and what momentum adds."""

from __future__ import annotations

import pytest
import torch

from robustgen.attacks.mi_fgsm import MIFGSM
from robustgen.errors import SpecError
from robustgen.threat import Norm, ThreatModel
from tests.query_helpers import double_task, rounds_of
from tests.transfer_helpers import BALLS, SHAPE, check_two_steps, slope


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_two_steps_are_those_of_the_paper(norm: Norm, eps: float) -> None:
    """The gradient at the iterate, divided by its size, added to the decayed g; a step of eps / 2 along g."""
    check_two_steps(
        MIFGSM(steps=2, decay=0.7), norm, eps, lambda model, here, y, _g, _turn, _step: slope(model, here, y)
    )


def test_without_momentum_it_is_iterated_fgsm() -> None:
    """decay=0: each step is along the sign of the gradient where the iterate is."""
    model, x, y = double_task(SHAPE)
    states = rounds_of(MIFGSM(steps=4, decay=0.0), model, x, y, ThreatModel("linf", 0.04), 4)
    here = x
    for s in states[1:]:
        here = (here + 0.01 * slope(model, here, y).sign()).clamp(x - 0.04, x + 0.04).clamp(0, 1)
        torch.testing.assert_close(s.x_next, here, atol=1e-9, rtol=0)


def test_towards_a_goal_it_ascends_that_class() -> None:
    """With a goal the first step raises log p of the goal."""
    from robustgen.oracle import Oracle
    from robustgen.rng import ExampleRng

    model, x, y = double_task(SHAPE)
    goal = (y + 1) % 4
    s = MIFGSM(steps=2).init(Oracle(model), x, y, ThreatModel("linf", 0.02), ExampleRng.of(0, range(3)), goal)
    s = MIFGSM(steps=2).step(Oracle(model), s)
    torch.testing.assert_close(s.x_next, (x - 0.01 * slope(model, x, goal).sign()).clamp(0, 1), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("options", "says"), [({"steps": 0}, "mi-fgsm: steps must be"), ({"decay": -1.0}, "mi-fgsm: decay must be")]
)
def test_bad_parameters(options: dict[str, float], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=says):
        MIFGSM(**options)  # type: ignore[arg-type]
