"""DeepFool: one step on a linear classifier, the nearest of its boundaries, the end at the first success."""

from __future__ import annotations

import pytest
import torch

from robustgen.attacks.deepfool import DeepFool
from robustgen.errors import SpecError
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel
from tests.nearest_helpers import FarLinear, nearest


@pytest.mark.parametrize(("text", "overshoot"), [("deepfool", 0.001), ("deepfool:overshoot=0.02", 0.02)])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_one_step_crosses_the_nearest_boundary_of_a_linear_classifier(norm: Norm, text: str, overshoot: float) -> None:
    """eqs. (8) and (9): the second point lies (1 + eta) (d + 0.0001) away, d that of the nearest of four boundaries."""
    model = FarLinear((1, 8, 8), classes=5)
    x, y = model.images(6)
    found = nearest(text, model, x, y, norm)
    for o, d in zip(found, model.exact(x, y, norm), strict=True):
        assert (1, 1 + 2 * 4) == (o.round, o.forwards)
        assert o.distance == pytest.approx((1 + overshoot) * (d + 1e-4), rel=1e-4)


def test_only_the_likeliest_classes_are_looked_at() -> None:
    """With `classes=1` the boundary to the second largest logit is crossed, however near another one is."""
    model = FarLinear((1, 8, 8), classes=5)
    x, y = model.images(6)
    second = model(x).topk(2).indices[:, 1]
    found = nearest("deepfool:classes=1:overshoot=0.02", model, x, y, "l2")
    assert second.tolist() == [o.prediction for o in found]
    assert all((o.distance or 0) >= 1.02 * d for o, d in zip(found, model.exact(x, y, "l2"), strict=True))


def test_a_row_ends_at_its_first_success() -> None:
    """It says so after the round that finds it misclassified, and a row still right does not."""
    model = FarLinear((1, 8, 8), classes=2)
    x, y = model.images(2)
    attack, oracle = DeepFool(steps=7), Oracle(model)
    state = attack.init(oracle, x, torch.stack([1 - y[0], y[1]]), ThreatModel.unbounded("l2"), ExampleRng.of(0, [0, 1]))
    after = attack.step(oracle, state)
    assert ([1, 1], [True, False]) == (after.i.tolist(), after.ended(attack.rounds).tolist())


@pytest.mark.parametrize("options", [{"steps": 0}, {"classes": 0}, {"overshoot": 0.0}, {"overshoot": 1.0}])
def test_bad_parameters(options: dict[str, float]) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match="deepfool: "):
        DeepFool(**options)  # type: ignore[arg-type]


def test_nothing_moves_without_a_gradient() -> None:
    """A classifier that answers the same everywhere leaves the image where it is."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).requires_grad_(requires_grad=False)
    torch.nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    x, oracle = torch.full((1, 1, 4, 4), 0.5), Oracle(model)
    attack, y = DeepFool(), model(x).argmax(1)
    state = attack.step(oracle, attack.init(oracle, x, y, ThreatModel.unbounded("linf"), ExampleRng.of(0, [0])))
    assert torch.equal(x, state.x_next)
