"""The closeness weight: the gradient against finite differences, the trade-off against its closed form."""

from __future__ import annotations

import math

import pytest
import torch

from robustgen.attacks.base import Query, stay_close
from robustgen.attacks.plans import describe, parse_attack
from robustgen.errors import SpecError
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import make_images, make_linear


def test_gradient_is_that_of_the_loss() -> None:
    """In float64 against finite differences, rectangular RGB."""
    g = torch.Generator().manual_seed(0)
    x, start = (torch.rand(4, 3, 5, 2, dtype=torch.float64, generator=g) for _ in range(2))
    slope = torch.randn(4, 3, 5, 2, dtype=torch.float64, generator=g)

    def at(point: torch.Tensor) -> Query:
        return stay_close(Query((slope * point).flatten(1).sum(1), slope, torch.zeros(4, 2)), point, start, 0.7)

    way = torch.randn(4, 3, 5, 2, dtype=torch.float64, generator=g)
    change = (at(x + 1e-6 * way).loss - at(x - 1e-6 * way).loss) / 2e-6
    torch.testing.assert_close((at(x).grad * way).flatten(1).sum(1), change, rtol=1e-6, atol=1e-6)
    expected = (slope * x).flatten(1).sum(1) - 0.7 * (x - start).square().flatten(1).sum(1)
    torch.testing.assert_close(at(x).loss, expected)


def test_no_weight_is_no_change() -> None:
    """The very same object, so that old figures stay as they are."""
    query = Query(torch.zeros(1), torch.zeros(1, 1, 1, 1), torch.zeros(1, 2))
    assert stay_close(query, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 0.0) is query


@pytest.mark.parametrize("text", ["pgd:steps=400:rel_step=0.004", "apgd-ce:steps=200"])
@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_where_the_two_terms_balance(text: str, weight: float) -> None:
    """On the margin of two linear classes, of constant slope w, the optimum inside the ball is x + w / (2 lambda).

    Towards the other class nothing but the weight says where to stop: the judge is not asked.
    """
    model = make_linear((1, 4, 3), classes=2)
    x, _ = make_images(model, 3, (1, 4, 3))
    x = 0.5 + 0.02 * (x - 0.5)
    y, target = model(x).argmax(1), 1 - model(x).argmax(1)
    slope = (model.weight[target] - model.weight[y]).reshape(x.shape)
    scale = 0.3 * 2 * weight / float(slope.flatten(1).norm(dim=1).max())  # an optimum 0.3 away at most
    with torch.no_grad():
        model.weight *= scale
        model.bias *= scale
    attack = parse_attack(f"{text}:loss=margin:closeness={weight}")
    threat = ThreatModel("l2", 1.0)
    state = attack.init(Oracle(model), x, y, threat, ExampleRng.of(0, range(3)), goal=target)  # type: ignore[call-arg]
    state = state.begin_at(x, torch.ones(3, dtype=torch.bool))
    reached, best = x, torch.full((3,), -math.inf)
    for _ in range(attack.rounds):
        state = attack.step(Oracle(model), state)
        value = state.aimed(attack.loss)(state.logits, y)  # type: ignore[attr-defined]
        value = value - weight * (state.x_adv - x).square().flatten(1).sum(1)
        reached = torch.where((value > best)[:, None, None, None], state.x_adv, reached)
        best = torch.maximum(best, value)
    optimum = x + scale * slope / (2 * weight)
    assert float((optimum - x).flatten(1).norm(dim=1).min()) > 0.1
    assert float((reached - optimum).flatten(1).norm(dim=1).max()) < 0.02


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-t", "apgd-dlr", "malt"])
def test_protocol_names_it_only_where_it_weighs(name: str) -> None:
    """Old protocol strings, and with them identities, stay."""
    assert "closeness" not in describe(parse_attack(name), 10)
    assert "closeness=0.5" in describe(parse_attack(f"{name}:closeness=0.5"), 10)


@pytest.mark.parametrize("value", ["-0.1", "nan", "inf"])
@pytest.mark.parametrize("name", ["pgd", "apgd-ce"])
def test_a_negative_weight_is_refused(name: str, value: str) -> None:
    """Distance is never worth something by itself."""
    with pytest.raises(SpecError, match=r"closeness must be a number >= 0, got"):
        parse_attack(f"{name}:closeness={value}")
