"""APGD in the L1 norm: step for step the reference implementation, and the optimum where it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyautoattack.autopgd_base as reference_module
import pytest
import torch
from torch import Tensor, nn

from robustgen.attacks import apgd_l1
from robustgen.attacks.apgd import APGDCE, APGDDLR, APGDT
from robustgen.attacks.apgd_l1 import SparseAscent, phases
from robustgen.attacks.base import Attack
from robustgen.engine import Outcome, run
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import Linear, Recorder, make_convnet, make_images, make_linear

THREAT = ThreatModel("l1", 2.0)


def our_points(attack: Any, model: nn.Module, x: Tensor, y: Tensor) -> tuple[list[Tensor], SparseAscent]:
    """Every point that our attack queries, starts of phases included, and the last state."""
    state = attack.init(Oracle(model), x, y, THREAT, ExampleRng.of(0, range(len(x))))
    assert isinstance(state, SparseAscent)
    points = []
    while (state.i < attack.rounds).any():
        state = attack.step(Oracle(model), state)
        points.append(state.x_adv)
    return points, state


def reference_points(
    monkeypatch: pytest.MonkeyPatch, loss: str, steps: int, model: nn.Module, x: Tensor, y: Tensor, start: Tensor
) -> list[Tensor]:
    """Every point that the reference queries from the same start, in float64 throughout.

    Its conversions to float32 are made conversions to float64, its noise ends at our start, and what its projection
    leaves of zeros (rounding) counts as zero.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "randn_like", lambda z: start - z)
    monkeypatch.setattr(reference_module, "L0_norm", lambda z: (z.abs() > 1e-12).flatten(1).sum(1))
    recorder = Recorder(model)
    options: Any = {"n_iter": steps, "norm": "L1", "eps": THREAT.eps, "use_largereps": True, "seed": 0, "device": "cpu"}
    if loss == "dlr-targeted":
        reference = reference_module.APGDAttack_targeted(recorder, n_target_classes=1, **options)
    else:
        reference = reference_module.APGDAttack(recorder, loss=loss, **options)
    with torch.random.fork_rng(devices=[]):  # it seeds the global generator
        reference.perturb(x, y)
    return recorder.seen[2 if loss == "dlr-targeted" else 1 :]  # before: clean images, for predictions and targets


@pytest.mark.parametrize("steps", [100, 15, 300])
@pytest.mark.parametrize(("attack", "loss"), [(APGDCE, "ce"), (APGDDLR, "dlr"), (APGDT, "dlr-targeted")])
def test_same_trajectory_as_the_reference(
    attack: Callable[..., Attack], loss: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same start all points of all phases agree: densities, step sizes, returns, projections."""
    model = make_convnet(channels=3, classes=6)
    x, y = make_images(model, 8, (3, 9, 7))
    model, x = model.double(), x.double()
    ours, last = our_points(attack(steps=steps), model, x, y)
    theirs = reference_points(monkeypatch, loss, steps, model, x, y, ours[0])
    assert steps + 3 == len(ours) == len(theirs)
    assert len(last.density.unique()) > 1  # rows went their own ways
    for k, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        torch.testing.assert_close(b, a, atol=1e-6, rtol=0, msg=f"point {k} differs")


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 15, 100])
def test_every_attack_ends_inside(steps: int) -> None:
    """The iterations add up, each ball is kept, and even the shortest attack asks within eps."""
    model = make_linear()
    x, y = make_images(model)
    points, _ = our_points(APGDCE(steps=steps), model, x, y)
    assert steps == sum(phases(steps))
    assert steps + 3 == len(points)
    first, second, third = phases(steps)
    factors = [3] * (first + 1) + [2] * (second + 1) + [1] * (third + 1)
    for factor, point in zip(factors, points, strict=True):
        assert THREAT.scaled(factor).contains(x, point).all()


def test_phases_of_the_paper() -> None:
    """30, 30 and 40 % of the iterations."""
    assert (30, 30, 40) == phases(100)
    assert (3, 3, 4) == phases(10)


def test_rows_keep_their_own_phase() -> None:
    """A batch of rows in different phases moves as each row does alone."""
    model = make_convnet().double()
    x, y = make_images(make_convnet(), 3)
    x, attack, oracle = x.double(), APGDCE(steps=10), Oracle(model)
    state: Any = attack.init(oracle, x, y, THREAT, ExampleRng.of(0, range(3)))
    alone = []
    for row, rounds in enumerate((0, 6, 10)):
        one = _row(state, row)
        for _ in range(rounds):
            one = attack.step(oracle, one)
        alone.append(one)
    assert [0, 1, 2] == [int(one.phase) for one in alone]
    together: Any = alone[0]
    for other in alone[1:]:
        together = _joined(together, other)
    for _ in range(3):
        together = attack.step(oracle, together)
        alone = [attack.step(oracle, one) for one in alone]
        for row, one in enumerate(alone):
            torch.testing.assert_close(together.x_next[row], one.x_next[0], atol=1e-9, rtol=0)
            assert int(together.i[row]) == int(one.i)


def _row(state: SparseAscent, row: int) -> SparseAscent:
    changes: dict[str, Any] = {k: v[row : row + 1] for k, v in vars(state).items() if isinstance(v, Tensor)}
    return replace(state, rng=state.rng.take(torch.tensor([row])), **changes)


def _joined(a: SparseAscent, b: SparseAscent) -> SparseAscent:
    changes: dict[str, Any] = {
        k: torch.cat([v, getattr(b, k)]) for k, v in vars(a).items() if isinstance(v, Tensor) and k != "logits"
    }
    return replace(a, rng=a.rng.join(b.rng), logits=torch.zeros(len(changes["y"]), 4).double(), **changes)


def test_steps_move_the_largest_coordinates() -> None:
    """Signs of the chosen share, of L1 norm 1; nothing where the gradient is zero."""
    grad = torch.tensor([[4.0, -3.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0]]).reshape(2, 1, 2, 2)
    step = apgd_l1._sparse_sign(grad, torch.tensor([0.5, 0.5]))
    assert [0.5, -0.5, 0.0, 0.0] == step[0].flatten().tolist()
    assert not step[1].any()
    alone = apgd_l1._sparse_sign(grad, torch.tensor([0.01, 1.0]))
    assert [1.0, 0.0, 0.0, 0.0] == alone[0].flatten().tolist()


ATTACKS = pytest.mark.parametrize("attack", [APGDCE(), APGDDLR(), APGDT(restarts=1)], ids=["ce", "dlr", "dlr-t"])


@ATTACKS
def test_optimal_on_a_linear_classifier(attack: Attack) -> None:
    """Succeeds a little beyond the closed-form distance of each example, fails everywhere below it.

    The optimum moves one pixel alone. Steps settle at two pixels, so the two largest weights are about the same here.
    """
    model = make_linear(classes=2, seed=8)
    x, y = make_images(model, 12)
    x = 0.5 + 0.1 * (x - 0.5)  # far from the walls of the box, so that the closed form holds
    y = model(x).argmax(1)
    distance = model.distance(x, y, "l1")
    tried = [k for k in range(12) if 1e-3 < float(distance[k]) < 0.4]
    assert len(tried) > 5
    for k in tried:
        assert _breaks(attack, model, x, y, k, 1.05 * float(distance[k])), f"example {k}"
        assert not _breaks(attack, model, x, y, k, 0.95 * float(distance[k])), f"example {k}"


@ATTACKS
def test_optimal_between_the_walls_of_the_box(attack: Attack) -> None:
    """The same where the optimum drives up to a dozen pixels to 0 or 1 and one part of the way."""
    model = make_linear((3, 8, 8), classes=2)
    x, y = make_images(model, 6, (3, 8, 8))
    filled = []
    for k in range(6):
        distance, pixels = _distance_in_the_box(model, x[k], int(y[k]))
        filled.append(pixels)
        assert _breaks(attack, model, x, y, k, 1.05 * distance), f"example {k}"
        assert not _breaks(attack, model, x, y, k, 0.95 * distance), f"example {k}"
    assert max(filled) > 8


def _distance_in_the_box(model: Linear, x: Tensor, y: int) -> tuple[float, int]:
    """L1 distance of x (C, H, W) in [0, 1] to the other of two classes, and how many pixels have to reach a wall.

    Every pixel costs the same, so the best pays by far the largest weight until that pixel is at its wall.
    """
    weight = model.weight[1 - y] - model.weight[y]
    order = weight.abs().argsort(descending=True)
    room = torch.where(weight > 0, 1 - x.flatten(), x.flatten())[order]
    logits = model(x[None])[0]
    missing, weight = float(logits[y] - logits[1 - y]), weight.abs()[order]
    gain = (weight * room).cumsum(0)
    full = int((gain < missing).sum())
    rest = missing - float(gain[full - 1] if full else 0)
    return float(room[:full].sum()) + rest / float(weight[full]), full


def _breaks(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, k: int, eps: float) -> bool:
    threat, outcomes = ThreatModel("l1", eps), list[Outcome]()
    run(
        attack, Oracle(model), Judge(model, threat), lambda ids: (x[list(ids)], y[list(ids)]), [k], threat,
        seed=0, batch_size=1, finish=outcomes.append,
    )  # fmt: skip
    return outcomes[0].broken
