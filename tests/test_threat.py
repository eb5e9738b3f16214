"""Threat models: parsing, and the geometry against independent optimisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

THREATS = ["linf:8/255", "linf:0.3", "l2:0.5", "l2:128/255", "l1:12", "l1:0.7"]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Images and far-away points, (6, 3, 5, 7)."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 5, 7, generator=g)
    x[0, 0] = 0
    x[1, 0] = 1
    return x, x + torch.randn(6, 3, 5, 7, generator=g)


@pytest.mark.parametrize("text", THREATS)
def test_text_round_trips(text: str) -> None:
    """The fraction that was typed is what gets printed."""
    assert text == str(ThreatModel.parse(text))
    assert ThreatModel.parse(text) == ThreatModel.parse(text.upper())


def test_fractions_are_exact() -> None:
    """8/255 is the nearest float to the fraction, not to some decimal."""
    assert 8 / 255 == ThreatModel.parse("linf:8/255").eps
    assert ThreatModel("linf", 0.1) == ThreatModel.parse("linf:0.1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("linf:0", "positive"),
        ("linf:-1/255", "positive"),
        ("l2:nan", "must be a number"),
        ("l2:inf", "must be a number"),
        ("linf:8", "did you mean linf:8/255"),
        ("linf:300", "above 1 means nothing"),
        ("linf:eight", "must be a number"),
        ("linf:1/0", "divides by zero"),
        ("linf", r"expected linf:EPS such as linf:8/255"),
        ("lin:0.1", "did you mean 'linf'"),
        ("0.1", "unknown norm"),
    ],
)
def test_bad_threats_say_what_to_type(text: str, says: str) -> None:
    """One sentence for each way to get it wrong."""
    with pytest.raises(SpecError, match=says):
        ThreatModel.parse(text)


@pytest.mark.parametrize("text", THREATS)
def test_projection_lands_inside_and_keeps_what_is_inside(text: str, batch: tuple[Tensor, Tensor]) -> None:
    """Projected points are contained; projecting again moves nothing but rounding."""
    x, z = batch
    threat = ThreatModel.parse(text)
    inside = threat.project(x, z)
    assert threat.contains(x, inside).all()
    torch.testing.assert_close(inside, threat.project(x, inside), atol=1e-6, rtol=0)
    assert torch.equal(x, threat.project(x, x))


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_projection_is_the_nearest_point(norm: str) -> None:
    """Against SciPy's constrained optimiser on ball and box together (Linf and L1 are exact)."""
    g = torch.Generator().manual_seed(1)
    x, z = torch.rand(8, 1, 1, 4, generator=g), torch.randn(8, 1, 1, 4, generator=g)
    threat = ThreatModel(norm, 0.6)  # type: ignore[arg-type]
    ours = threat.project(x, z).flatten(1).double().numpy()
    for k in range(len(x)):
        a, b = x[k].flatten().double().numpy(), z[k].flatten().double().numpy()
        # Split u - x into positive parts p - q, so that the L1 constraint is linear and smooth.
        limits = {"linf": [(0, 0.6)] * 8, "l1": [(0, None)] * 8}[norm]
        cons = [{"type": "ineq", "fun": lambda v, a=a: np.concatenate([a + v[:4] - v[4:], 1 - a - v[:4] + v[4:]])}]
        if norm == "l1":
            cons.append({"type": "ineq", "fun": lambda v: 0.6 - v.sum()})
        best = minimize(
            lambda v, a=a, b=b: ((a + v[:4] - v[4:] - b) ** 2).sum(), np.full(8, 0.01), bounds=limits, constraints=cons,
            method="SLSQP", options={"maxiter": 500, "ftol": 1e-12},
        )  # fmt: skip
        np.testing.assert_allclose(ours[k], a + best.x[:4] - best.x[4:], atol=2e-4)


@pytest.mark.parametrize("text", THREATS)
def test_random_starts_are_inside_and_differ(text: str, batch: tuple[Tensor, Tensor]) -> None:
    """Starts lie in the threat model, on its surface when asked, and differ between examples."""
    x, _ = batch
    x = x * 0 + 0.5
    threat = ThreatModel.parse(text)
    rng = ExampleRng.of(0, range(6))
    for surface in (False, True):
        start = threat.random_start(x, rng, surface=surface)
        assert threat.contains(x, start).all()
        assert not torch.equal(start[0], start[1])
    if threat.norm != "l1" and threat.eps <= 0.5:
        on_surface = threat.random_start(x, rng, surface=True)
        torch.testing.assert_close(
            threat.distance(x, on_surface), torch.full((6,), threat.eps).double(), rtol=1e-4, atol=0
        )


def test_distance_is_the_norm() -> None:
    """Against NumPy in float64."""
    g = torch.Generator().manual_seed(2)
    x, z = torch.rand(4, 3, 6, 5, generator=g), torch.rand(4, 3, 6, 5, generator=g)
    delta = (z.double() - x.double()).flatten(1).numpy()
    for norm, order in (("linf", np.inf), ("l2", 2), ("l1", 1)):
        ours = ThreatModel(norm, 0.5).distance(x, z)  # type: ignore[arg-type]
        np.testing.assert_allclose(ours.numpy(), np.linalg.norm(delta, order, axis=1), rtol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steepest_reaches_the_dual_norm(norm: str) -> None:
    """The unit step gains exactly the dual norm of the gradient."""
    grad = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    gain = (ThreatModel(norm, 0.1).steepest(grad) * grad).flatten(1).sum(1)  # type: ignore[arg-type]
    dual = torch.linalg.vector_norm(grad.flatten(1), ord=1 if norm == "linf" else 2, dim=1)
    torch.testing.assert_close(gain, dual)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_zero_gradient_moves_nothing(norm: str) -> None:
    """No division by zero where the loss is flat."""
    assert not ThreatModel(norm, 0.1).steepest(torch.zeros(2, 1, 3, 3)).any()  # type: ignore[arg-type]


def test_what_is_outside_is_not_contained(batch: tuple[Tensor, Tensor]) -> None:
    """Too far, beyond the box, NaN and infinity are each refused."""
    x, _ = batch
    threat = ThreatModel("linf", 0.1)
    for bad in (x + 0.11, x - 0.11, torch.full_like(x, math.nan), torch.full_like(x, math.inf)):
        assert not threat.contains(x, bad).any()
    edge = x.clone()
    edge[1, 0, 0, 0] = 1 + 1e-6  # within eps, beyond the box
    assert [True, False] == threat.contains(x, edge)[:2].tolist()
