"""SurFree: its points against the circle they lie on, its search for an angle, and the optimum where it is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.fft import dctn

from robustgen.attacks.surfree import SurFree
from robustgen.errors import SpecError
from robustgen.threat import ThreatModel
from tests.nearest_helpers import FarLinear, nearest, ratios
from tests.query_helpers import double_task, rounds_of

L2 = ThreatModel.unbounded("l2")


def test_points_are_those_of_the_paper() -> None:
    """z = d cos(a) (u cos(a) + v sin(a)), v orthogonal to u; angles theta_max (1, -1, 2/3, ...), then a bisection."""
    model, x, y = double_task((2, 8, 6), n=3)
    states = rounds_of(SurFree(bisections=4), model, x, y, L2, 150)
    scans = turns = 0
    for before, after in pairwise(states):
        for row in range(3):
            phase, tried = int(before.phase[row]), int(before.tried[row])
            if phase < 2:
                continue
            gap = before.here[row] - x[row]
            d, v = float(gap.norm()), before.way[row]
            assert float(v.norm()) == pytest.approx(1)
            assert float((v * gap).sum()) == pytest.approx(0, abs=1e-6)
            if phase == 2:
                scans += 1
                angle = float(before.reach[row]) * (1, -1, 2 / 3, -2 / 3, 1 / 3, -1 / 3)[tried]
            else:
                turns += 1
                angle = float(before.side[row] * (before.low[row] + before.high[row]) / 2)
            z = d * math.cos(angle) * (gap / d * math.cos(angle) + v * math.sin(angle))
            torch.testing.assert_close(after.x_adv[row], (x[row] + z).clamp(0, 1), atol=1e-6, rtol=0)
            assert float(z.norm()) == pytest.approx(d * abs(math.cos(angle)))
            wrong = bool(model(after.x_adv[row : row + 1]).argmax(1) != y[row])
            if phase == 2 and wrong:
                assert (3, abs(angle)) == (int(after.phase[row]), pytest.approx(float(after.low[row])))
                assert float(after.reach[row]) == pytest.approx(min(math.pi / 4, float(before.reach[row]) / 0.98))
            elif phase == 2 and tried == 5:
                assert float(after.reach[row]) == pytest.approx(0.98 * float(before.reach[row]))
                assert torch.equal(before.here[row], after.here[row])
            elif phase == 3 and tried == 3:
                assert float((after.here[row] - x[row]).norm()) < d
    assert min(scans, turns) >= 20


def test_directions_are_low_frequencies() -> None:
    """Where u has none of the high ones: for a grey start the upper half of the coefficients is 0."""
    x = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    attack = SurFree()
    model, _, _ = double_task((1, 8, 8))
    (state,) = rounds_of(attack, model, x, torch.zeros(1, dtype=torch.int64), L2, 0)
    state.here = x + 0.1
    way = attack.arrive(state).way[0, 0].numpy()
    found = dctn(way, norm="ortho")
    assert abs(found[4:]).max() < 1e-6
    assert abs(found[:, 4:]).max() < 1e-6
    assert abs(found[:4, :4]).max() > 0.1


def test_linear_optimum() -> None:
    """Never below the closed form, and near it with all frequencies and a long search."""
    model = FarLinear((1, 5, 5), classes=2)
    x, y = model.images(4)
    text = "surfree:queries=1000:frequencies=1"
    ratio = ratios(nearest(text, model, x, y, "l2"), model.exact(x, y, "l2"))
    assert ratio.min() > 1 - 1e-4
    assert ratio.max() <= 1.1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queries": 0}, "surfree: queries must be"), ({"angles": 0}, "angles and bisections must be"),
        ({"frequencies": 0.0}, "frequencies is a share"),
    ],
)  # fmt: skip
def test_bad_parameters(options: dict[str, float], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=says):
        SurFree(**options)  # type: ignore[arg-type]
