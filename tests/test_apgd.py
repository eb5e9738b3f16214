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


@pytest.mark.parametrize("options", [{"steps": 0}, {"restarts": 0}])
def test_bad_parameters_are_refused(options: dict[str, int]) -> None:
    """Nothing runs with zero steps."""
    with pytest.raises(SpecError, match="must be >= 1"):
        APGDCE(**options)
