"""Minimum-norm attacks: their contract, the optimum where it is known exactly, and what may be asked of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import robustgen
from robustgen.attacks.base import MinimumNorm, sees
from robustgen.attacks.nearest import check_goal, goal_threats
from robustgen.attacks.plans import parse_attack, parse_plan
from robustgen.errors import SpecError
from robustgen.registry import ATTACKS
from robustgen.threat import Norm, ThreatModel
from tests.helpers import assert_global_rng_untouched, make_convnet, make_images, make_linear
from tests.nearest_helpers import FarLinear, ReluNet, nearest, ratios

# One small instance of every attack that looks for the nearest image.
INSTANCES = {
    "cw": "cw:steps=30:searches=4:c=1:rate=0.05",
    "ddn": "ddn:steps=30:restarts=2",
    "deepfool": "deepfool:steps=10",
    "fab": "fab:steps=10:restarts=2",
    "fab-t": "fab-t:steps=10:restarts=3",
    "fmn": "fmn:steps=15:restarts=2",
    "boundary": "boundary:queries=80",
    "hopskipjump": "hopskipjump:queries=80:probes=10",
    "surfree": "surfree:queries=80",
    "fmn-t": "fmn-t:steps=10:restarts=3",
    "sigma-zero": "sigma-zero:steps=20:restarts=2",
}
CASES = [(text, norm) for text in INSTANCES.values() for norm in parse_attack(text).nearest_in]  # type: ignore[attr-defined]
OPTIMAL: dict[Norm, tuple[str, ...]] = {
    "l2": ("ddn", "fmn:steps=100", "deepfool", "cw", "fab:steps=40", "fab-t:steps=40:restarts=3"),
    "linf": ("fmn:steps=100", "deepfool", "fab:steps=40", "fab-t:steps=40:restarts=3"),
    "l1": ("fmn:steps=100", "fmn-t:steps=60:restarts=3", "fab:steps=40", "fab-t:steps=40:restarts=3"),
    "l0": ("fmn:steps=200", "sigma-zero"),
}
EXACT = [(norm, text) for norm, texts in OPTIMAL.items() for text in texts]


def test_every_minimum_norm_attack_is_tried() -> None:
    """The table above covers the registry."""
    known = {name for name in ATTACKS if hasattr(ATTACKS[name], "nearest_in")}
    assert set(INSTANCES) == known
    assert all(isinstance(parse_attack(text), MinimumNorm) for text in INSTANCES.values())
    assert not isinstance(parse_attack("pgd"), MinimumNorm)


@pytest.mark.parametrize(("text", "norm"), CASES)
def test_contract(text: str, norm: Norm) -> None:
    """The nearest judged point, its distance, class and cost; the same in any batch; the generator as found."""
    model = make_convnet(channels=3, classes=5).double()
    x, y = make_images(make_convnet(channels=3, classes=5), 10, (3, 9, 6))
    x = x.double()
    with assert_global_rng_untouched():
        found = nearest(text, model, x, y, norm, batch_size=10)
    attack, some = parse_attack(text), 0
    for k, o in enumerate(found):
        assert o.backwards == 0 if sees(attack) == "labels" else o.backwards >= attack.rounds or "deepfool" in text
        if not o.broken:
            continue
        some += 1
        assert o.x_adv is not None
        assert 0 <= float(o.x_adv.min()) <= float(o.x_adv.max()) <= 1
        assert int(model(o.x_adv[None]).argmax(1)) == o.prediction != int(y[k])
        delta = o.x_adv - x[k]
        expected = {"l0": (delta != 0).any(0).sum(), "l1": delta.abs().sum(), "l2": delta.square().sum().sqrt(),
                    "linf": delta.abs().max()}[norm]  # fmt: skip
        assert float(expected) == pytest.approx(o.distance, rel=1e-12)
    assert some >= 5
    for size in (1, 4):
        for a, b in zip(found, nearest(text, model, x, y, norm, batch_size=size), strict=True):
            assert (a.broken, a.forwards) == (b.broken, b.forwards)
            assert a.distance is None or a.distance == pytest.approx(b.distance, rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 5)])
@pytest.mark.parametrize(("norm", "text"), EXACT)
def test_linear_optimum(norm: Norm, text: str, shape: tuple[int, int, int]) -> None:
    """Never below the closed form, and within 1.05 times it."""
    model = FarLinear(shape, classes=2)
    x, y = model.images(8)
    exact = model.exact(x, y, norm)
    assert exact.min() > {"l2": 0.2, "linf": 0.02, "l1": 1, "l0": 1}[norm]
    ratio = ratios(nearest(text, model, x, y, norm), exact)
    assert ratio.min() > 1 - 1e-4
    assert ratio.max() <= 1.05


@pytest.mark.parametrize(
    ("text", "place"), [("fmn-t:steps=60:restarts=7", 7), ("deepfool", 7), ("fab:steps=30", 7), ("fmn", 4), ("cw", 4)]
)
def test_linear_optimum_of_several_classes(text: str, place: int) -> None:
    """Eight classes: within 1.05 times the nearest of seven boundaries, always by what looks at each of them.

    Attacks that follow the largest wrong logit may end at the boundary to its class: they do for less than half.
    """
    model = FarLinear((1, 8, 8), classes=8)
    x, y = model.images(8)
    ratio = np.sort(ratios(nearest(text, model, x, y, "l2"), model.exact(x, y, "l2")))
    assert ratio[0] > 1 - 1e-4
    assert ratio[place] <= 1.05


@pytest.mark.parametrize(
    ("norm", "texts"),
    [
        ("l2", "ddn:loss=margin:restarts=4,fmn:steps=100:restarts=4,fmn-t:steps=60:restarts=6,fab:steps=40:restarts=4"),
        ("linf", "fmn:steps=100:restarts=4,fmn-t:steps=60:restarts=6,fab:steps=40:restarts=4"),
        ("l1", "fmn:steps=100:restarts=4,fmn-t:steps=60:restarts=6,fab:steps=40:restarts=4"),
        ("l0", "fmn:steps=100:restarts=4,sigma-zero:restarts=4"),
    ],
)
def test_optimum_of_a_hidden_layer(norm: Norm, texts: str) -> None:
    """The best of the attacks is never below the enumerated optimum, and within 1.05 times it on every image."""
    model = ReluNet()
    x = torch.rand(10, *model.shape, generator=torch.Generator().manual_seed(3))
    y = model(x).argmax(1)
    exact = np.array([model.exact(x[k], int(y[k]), norm) for k in range(len(x))])
    each = [ratios(nearest(text, model, x, y, norm), exact) for text in texts.split(",")]
    best = np.min(each, axis=0)
    assert np.isfinite(exact).all()
    assert best.min() > 1 - 1e-4
    assert best.max() <= 1.05


@pytest.mark.parametrize("classes", [1, 2, 3, 1000])
@pytest.mark.parametrize(("text", "norm"), CASES)
def test_any_number_of_classes(text: str, norm: Norm, classes: int) -> None:
    """One class: nothing is found and nothing fails; more: something is."""
    if classes == 1000 and text.startswith("fab:"):
        text = "fab:steps=1"  # 999 gradients a step
    model = make_linear((1, 5, 9), classes=classes)
    x, y = make_images(model, 3, (1, 5, 9))
    found = nearest(text, model, x, y, norm)
    assert all(o.error is None for o in found)
    assert any(o.broken for o in found) == (classes > 1)


def test_zero_gradients_do_no_harm() -> None:
    """Where the classifier answers the same everywhere, nothing is found, and every number stays finite."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).requires_grad_(requires_grad=False)
    torch.nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for text, norm in CASES:
        found = nearest(text, model, x, model(x).argmax(1), norm)
        assert not any(o.broken or o.error for o in found), text


def test_l0_counts_pixels() -> None:
    """A pixel that differs in three channels counts once; the projection keeps whole pixels, the most changed first."""
    threat = ThreatModel.unbounded("l0")
    x = torch.full((1, 3, 2, 2), 0.5)
    z = x.clone()
    z[0, :, 0, 0], z[0, 1, 1, 1] = 0.7, 0.9
    assert [2.0] == threat.distance(x, z).tolist()
    kept = threat.project(x, z, torch.tensor([1.0]))
    assert [1.0] == threat.distance(x, kept).tolist()
    assert float(kept[0, 1, 1, 1]) == pytest.approx(0.9)
    assert torch.equal(z, threat.project(x, z, torch.tensor([2.0])))


def test_threat_models_without_an_eps() -> None:
    """They print as the norm alone, hold all of [0, 1], and are read only where they make sense."""
    threat = ThreatModel.parse("L2", bare=True)
    assert ("l2", False, math.inf) == (str(threat), threat.bounded, threat.eps)
    assert ThreatModel.parse(str(threat), bare=True) == threat
    x = torch.zeros(2, 1, 2, 2)
    assert [True, False] == threat.contains(x, torch.stack([x[0] + 1, x[1] + 1.01])).tolist()
    with pytest.raises(SpecError, match="expected l2:EPS"):
        ThreatModel.parse("l2")
    with pytest.raises(SpecError, match="l0 is measured, not bounded"):
        ThreatModel.parse("l0:5", bare=True)


@pytest.mark.parametrize(
    ("threat", "report", "says"),
    [
        ("l2", "accuracy", "expected l2:EPS"),
        ("l2:0.5", "distance", "type --threat l2."),
        ("l2,linf", "distance", "in one norm without an eps"),
        ("l2", "distances", "did you mean 'distance'"),
        (ThreatModel.unbounded("l2"), "accuracy", "threat l2 has no eps"),
    ],
)
def test_threat_and_report_go_together(threat: str | ThreatModel, report: str, says: str) -> None:
    """An eps for accuracy, none for distance; one sentence where not."""
    with pytest.raises(SpecError, match=says):
        goal_threats(threat, report)


@pytest.mark.parametrize(
    ("attacks", "threat", "says"),
    [
        (
            "ddn",
            "l2:0.5",
            "'ddn' looks for the nearest adversarial image and takes no eps, got l2:0.5; type --threat l2",
        ),
        ("sigma-zero", "linf:0.1", "type --threat l0 --report distance"),
        ("fmn,pgd", "l2", "'pgd' needs an eps, and threat l2 has none"),
        ("ddn", "l0", "'ddn' finds the nearest image in l2, not in l0"),
    ],
)
def test_plan_and_threat_go_together(attacks: str, threat: str, says: str) -> None:
    """A minimum-norm attack under an eps, and the other way round."""
    limits = ThreatModel.parse(threat, bare=True)
    with pytest.raises(SpecError, match=says):
        check_goal(parse_plan("rapid", attacks, limits), limits)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_plan_of_each_norm(norm: Norm) -> None:
    """`nearest` holds two attacks or more, all of which know the norm."""
    threat = ThreatModel.unbounded(norm)
    plan = parse_plan("nearest", None, threat)
    assert len(plan.attacks) >= 2
    assert plan.individual
    check_goal(plan, threat)
    with pytest.raises(SpecError, match="needs an eps"):
        check_goal(parse_plan("rapid", None, ThreatModel("l2", 0.5)), ThreatModel.unbounded("l2"))


def test_library_function_returns_the_nearest() -> None:
    """`robustgen.attack` under a norm alone."""
    model = FarLinear((1, 8, 8), classes=2).eval()
    x, y = model.images(4)
    x_adv = robustgen.attack(model, x, y, "l2", "fmn:steps=60")
    assert (model(x_adv).argmax(1) != y).all()
    assert (ThreatModel.unbounded("l2").distance(x, x_adv).numpy() / model.exact(x, y, "l2")).max() <= 1.05
