"""APGD: step for step the reference implementation, and the optimum on linear classifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from robustgen.attacks.apgd import APGDCE, APGDDLR, APGDT, APGDState
from robustgen.attacks.base import Attack
from robustgen.attacks.losses import TargetedMargin
from robustgen.attacks.malt import MALT
from robustgen.errors import SpecError
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import Recorder, make_convnet, make_images, make_linear

STEPS = 100


def our_points(attack: Any, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> list[Tensor]:
    """Every point that our attack queries, start included."""
    oracle = Oracle(model)
    state = attack.init(oracle, x, y, threat, ExampleRng.of(0, range(len(x))))
    assert isinstance(state, APGDState)
    points = []
    for _ in range(attack.rounds):
        state = attack.step(oracle, state)
        points.append(state.x_adv)
    return points


def reference_points(
    loss: str, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, start: Tensor, target: Tensor | None
) -> list[Tensor]:
    """Every point that the reference queries from the same start."""
    recorder = Recorder(model)
    kind = APGDAttack if target is None else APGDAttack_targeted
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    reference = kind(recorder, n_iter=STEPS, norm=norm, eps=threat.eps, seed=0, device="cpu")
    reference.init_hyperparam(x)
    reference.loss = loss
    reference.y_target = target
    reference.attack_single_run(x, y, x_init=start)
    return recorder.seen


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("attack", "loss"), [(APGDCE, "ce"), (APGDDLR, "dlr"), (APGDT, "dlr-targeted")])
def test_same_trajectory_as_the_reference(norm: str, attack: Callable[..., Attack], loss: str) -> None:
    """From the same start all 101 points agree: step sizes, checkpoints, momentum and restarts from the best point."""
    model = make_convnet(channels=3, classes=6).double()
    x = torch.rand(8, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ranked = model(x).argsort(1, descending=True)
    y, target = ranked[:, 0], ranked[:, 1]
    eps = 0.125 if norm == "linf" else 1.5  # exact in float32, in which the reference keeps its steps
    threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
    ours = our_points(attack(steps=STEPS), model, x, y, threat)
    theirs = reference_points(loss, model, x, y, threat, ours[0], target if attack is APGDT else None)
    assert STEPS + 1 == len(ours) == len(theirs)
    assert (ours[0] - ours[-1]).abs().amax() > 1e-4  # it moved
    for k, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        torch.testing.assert_close(b, a, atol=1e-9, rtol=0, msg=f"point {k} differs")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_start_is_on_the_surface(norm: str) -> None:
    """Starts are scaled to length eps before clipping, as the reference does."""
    model = make_linear()
    x, y = make_images(model)
    x = 0.5 + 0 * x
    threat = ThreatModel(norm, 0.1)  # type: ignore[arg-type]
    start = our_points(APGDCE(steps=1), model, x, y, threat)[0]
    torch.testing.assert_close(threat.distance(x, start), torch.full((len(x),), 0.1).double(), atol=1e-6, rtol=0)


def test_targets_follow_the_clean_logits() -> None:
    """Restart r aims at the r-th nearest wrong class, and starts over where there are too few."""
    model = make_linear(classes=3)
    x, y = make_images(model, 4)
    ranked = model(x).argsort(1, descending=True)
    attack = APGDT(steps=1)
    for restart, rank in ((0, 1), (1, 2), (2, 1)):
        rng = ExampleRng.of(0, range(4), [restart] * 4)
        state = attack.init(Oracle(model), x, y, ThreatModel("linf", 0.1), rng)
        assert torch.equal(ranked[:, rank], state.target)


def test_skip_leaves_out_the_nearest_targets() -> None:
    """A stage can begin where the one before it ended."""
    model = make_linear(classes=5)
    x, y = make_images(model, 4)
    ranked = model(x).argsort(1, descending=True)
    for restart, rank in ((0, 3), (1, 4), (2, 1)):
        rng = ExampleRng.of(0, range(4), [restart] * 4)
        state = APGDT(steps=1, skip=2).init(Oracle(model), x, y, ThreatModel("linf", 0.1), rng)
        assert torch.equal(ranked[:, rank], state.target)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_restarts_that_would_not_arrive_are_given_up(norm: str) -> None:
    """On a linear classifier what eps can close is known: beyond the distance a restart stands still, and is let go.

    Within the distance none is given up before it has succeeded, however often one looks.
    """
    model = make_linear(classes=2)
    x, y = make_images(model, 60)
    x = 0.5 + 0.1 * (x - 0.5)
    y = model(x).argmax(1)
    distance = model.distance(x, y, norm)
    threat = ThreatModel(norm, float(distance.median()))  # type: ignore[arg-type]
    attack = APGDT(steps=60, loss=TargetedMargin(), patience=6)
    state: Any = attack.init(Oracle(model), x, y, threat, ExampleRng.of(0, range(60)))
    succeeded = torch.zeros(60, dtype=torch.bool)
    given_up = torch.zeros(60, dtype=torch.bool)
    for _ in range(attack.rounds - 1):
        state = attack.step(Oracle(model), state)
        succeeded |= (state.logits.argmax(1) != y) & ~given_up
        given_up |= (state.i >= attack.rounds) & ~succeeded
    if norm != "l1":  # whose ball shrinks twice on the way, so that what was reached says less
        assert given_up[distance > 1.1 * threat.eps].all()
    assert succeeded[distance < 0.9 * threat.eps].all()
    patient = APGDT(steps=60, loss=TargetedMargin())
    state = patient.init(Oracle(model), x, y, threat, ExampleRng.of(0, range(60)))
    for _ in range(20):
        state = patient.step(Oracle(model), state)
    assert (state.i <= 20).all()


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (APGDCE, {"steps": 0}, "must be >= 1"),
        (APGDCE, {"restarts": 0}, "must be >= 1"),
        (APGDCE, {"patience": -1}, "patience must be >= 0"),
        (APGDT, {"skip": -1}, "skip must be >= 0"),
        (MALT, {"steps": 0}, "must be >= 1"),
    ],
)
def test_bad_parameters_are_refused(kind: type[APGDCE | APGDT], options: dict[str, Any], says: str) -> None:
    """Nothing runs with zero steps, or with a share that is none."""
    with pytest.raises(SpecError, match=says):
        kind(**options)
