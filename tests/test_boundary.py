"""The Boundary Attack: its two steps against their geometry, their lengths, and the optimum where it is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from robustgen.attacks.boundary import Boundary
from robustgen.errors import SpecError
from robustgen.threat import ThreatModel
from tests.nearest_helpers import FarLinear, nearest, ratios
from tests.query_helpers import double_task, rounds_of

L2 = ThreatModel.unbounded("l2")


def test_steps_are_those_of_the_paper() -> None:
    """A look lies on the sphere around x at delta d from `here`, a whole step is epsilon nearer."""
    model, x, y = double_task((2, 6, 5), n=2)
    states = rounds_of(Boundary(), model, x, y, L2, 120)
    looks = walks = 0
    for before, after in pairwise(states):
        for row in range(2):
            phase = int(before.phase[row])
            if phase < 2:
                continue
            here, sent = before.here[row] - x[row], after.x_adv[row] - x[row]
            d, delta = float(here.norm()), float(before.delta[row])
            inside = 0 < float(after.x_adv[row].min()) < float(after.x_adv[row].max()) < 1
            shrink = 1.0 if phase == 3 else 1 - float(before.epsilon[row])
            wrong = bool(model(after.x_adv[row : row + 1]).argmax(1) != y[row])
            assert wrong == bool(after.wrong[row])
            if inside:
                assert float(sent.norm()) == pytest.approx(shrink * d, rel=1e-5)
                cosine = float((here * sent).sum()) / (d * float(sent.norm()))
                assert cosine == pytest.approx(1 / math.sqrt(1 + delta**2), rel=1e-4)
            if phase == 3:
                looks += 1
                assert float(after.delta[row]) == pytest.approx(
                    min(0.5, delta * math.exp(0.5 * (wrong - 0.5))), rel=1e-5
                )
                assert torch.equal(before.here[row], after.here[row])
            else:
                walks += 1
                length = float(before.epsilon[row]) * math.exp(0.1 * (wrong - 0.25))
                assert float(after.epsilon[row]) == pytest.approx(min(0.5, length), rel=1e-5)
                assert torch.equal(after.here[row], after.x_adv[row] if wrong else before.here[row])
    assert looks >= 10
    assert walks >= 100


def test_linear_optimum() -> None:
    """Never below the closed form, and near it after a long walk."""
    model = FarLinear((1, 5, 5), classes=2)
    x, y = model.images(4)
    ratio = ratios(nearest("boundary:queries=1000", model, x, y, "l2"), model.exact(x, y, "l2"))
    assert ratio.min() > 1 - 1e-4
    assert ratio.max() <= 1.2


def test_bad_parameters() -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match="boundary: queries must be"):
        Boundary(queries=0)
    with pytest.raises(SpecError, match="delta and epsilon are parts of the distance"):
        Boundary(delta=1.5)
