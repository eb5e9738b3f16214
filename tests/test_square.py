"""Square Attack: step for step the reference implementation when both draw the same squares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyautoattack.square as reference_module
import pytest
import torch
from torch import Tensor, nn

from robustgen.attacks.square import Square
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import make_convnet, make_images, make_linear
from tests.query_helpers import Counting

STEPS = 150


class Replay(reference_module.SquareAttack):  # type: ignore[misc]
    """The reference with our draws put in its mouth; for one image at a time, since it shares draws in a batch."""

    rng: ExampleRng
    queue: list[float]

    def load(self, step: int, channels: int) -> None:
        """Queue the draws of one iteration: two per window, then the signs."""
        words = self.rng.words(5 + channels, "square", step)[0]
        self.places = words[:4].tolist()
        self.flip = bool(words[4] & 1)
        self.signs = ((words[5:] & 1) * 2 - 1).double()

    def random_int(self, low: int = 0, high: int = 1, shape: Any = None) -> Tensor:
        place = self.places.pop(0)
        return torch.tensor([(place * (high + 1)) >> 32])

    def random_choice(self, shape: Any) -> Tensor:
        return self.signs.reshape(shape)

    def p_selection(self, it: int) -> float:
        self.load(it + 1, self.orig_dim[0])
        return float(super().p_selection(it))

    def eta(self, s: int) -> Tensor:
        """The reference's pattern, turned as our word says."""
        shape = super().eta_rectangles(s // 2, s), super().eta_rectangles(s - s // 2, s)
        eta = torch.cat([shape[0], -shape[1]])
        eta = eta / eta.norm(p=1 if self.norm == "L1" else 2)
        return (eta.T if self.flip else eta).double()


def reference_points(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, start: Tensor) -> list[Tensor]:
    """The points that the reference queries after its start, which is replaced by ours."""
    seen: list[Tensor] = []

    def predict(z: Tensor) -> Tensor:
        if not seen:
            z.copy_(start)  # in place: it is the x_best that the attack goes on with
        seen.append(z.detach().clone())
        logits: Tensor = model(z).clone()
        return logits

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    attack = Replay(predict, norm=norm, n_queries=STEPS, eps=threat.eps, resc_schedule=False, seed=0, device="cpu")
    attack.rng, attack.flip, attack.signs = ExampleRng.of(0, [5]), False, torch.ones(x.shape[1]).double()
    attack.init_hyperparam(x)
    attack.random_choice = lambda shape: torch.ones(shape).double()  # the start, replaced anyway
    first = attack.p_selection

    def p_selection(it: int) -> float:
        if it == 0:
            del attack.random_choice
        return first(it)

    attack.p_selection = p_selection
    attack.attack_single_run(x, y)
    return seen


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.0625), ("l2", 0.5), ("l1", 4.0)])
def test_same_squares_as_the_reference(norm: str, eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same start and draws, the 150 proposals agree: sides, windows, signs, patterns, acceptance.

    For L1 the reference projects in float32 and shrinks the ball by a millionth for it; both are undone.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    project = reference_module.L1_projection
    monkeypatch.setattr(reference_module, "L1_projection", lambda x, d, r: project(x, d, r / (1 - 1e-6)))
    model = make_convnet(channels=3, classes=4)
    x, y = make_images(model, 1, (3, 13, 13), seed=4)
    model, x = model.double(), x.double()
    threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
    oracle, attack = Oracle(model), Square(steps=STEPS)
    state: Any = attack.init(oracle, x, y, threat, ExampleRng.of(0, [5]))
    ours = []
    for _ in range(attack.rounds):
        state = attack.step(oracle, state)
        ours.append(state.x_adv)
    assert float(state.margin_best) > 0, "a broken example would end the reference early"
    clean = float(model(x).topk(2).values.diff().abs())
    assert float(state.margin_best) < clean, "and one without progress shows little"
    theirs = reference_points(model, x, y, threat, ours[0])
    assert STEPS + 1 == len(theirs)
    for k, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        torch.testing.assert_close(b, a, atol=2e-6, rtol=0, msg=f"proposal {k} differs")


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 4, 17), (2, 31, 6), (1, 2, 2)])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.1), ("l1", 1.0)])
def test_any_shape(norm: str, eps: float, shape: tuple[int, int, int]) -> None:
    """Rectangles and tiny images stay inside the threat model."""
    model = make_linear(shape, classes=3)
    x, y = make_images(model, 5, shape)
    threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
    oracle, attack = Oracle(model), Square(steps=20)
    state: Any = attack.init(oracle, x, y, threat, ExampleRng.of(0, range(5)))
    for _ in range(attack.rounds):
        state = attack.step(oracle, state)
        assert threat.contains(x, state.x_adv).all()
    assert (state.margin_best < model(x).topk(2).values.diff().abs().squeeze(1)).any()


def test_proposals_that_change_nothing_are_not_computed_again() -> None:
    """On one channel late squares often land where nothing moves: same way with fewer images through the network."""

    class Forgetful(Oracle):
        def logits(self, x: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
            return super().logits(x)

    net = make_convnet(classes=4)
    x, y = make_images(net, 12, (1, 9, 9))
    threat, attack = ThreatModel("linf", 0.01), Square(steps=400)
    ends = []
    for kind in (Oracle, Forgetful):
        model = Counting(net)
        oracle = kind(model)
        state: Any = attack.init(oracle, x, y, threat, ExampleRng.of(0, range(12)))
        for _ in range(attack.rounds):
            state = attack.step(oracle, state)
        ends.append((state.x_best, state.margin_best, model.images, oracle.cost.forwards))
    (ours, margin, images, cost), (plain, plain_margin, plain_images, plain_cost) = ends
    torch.testing.assert_close(plain, ours)
    torch.testing.assert_close(plain_margin, margin)
    assert images < 0.95 * plain_images
    assert cost == plain_cost == plain_images, "an answer that is known still counts as a query"


def test_linf_proposals_are_squares_of_the_schedule() -> None:
    """For 32 x 32 the sides are those that the paper's schedule gives."""
    x = torch.full((1, 3, 32, 32), 0.5)
    threat = ThreatModel("linf", 0.1)
    oracle, attack = Oracle(make_convnet(channels=3, classes=2)), Square()
    start = attack.init(oracle, x, torch.zeros(1, dtype=torch.int64), threat, ExampleRng.of(0, [0]))
    state = replace(start, x_best=x)
    sides = ((0, 29), (10, 29), (11, 20), (51, 14), (201, 10), (501, 7), (1001, 5), (2001, 4), (4001, 3))
    for iteration, side in sides:
        proposal = attack.step(oracle, replace(state, i=torch.tensor([iteration + 1]))).x_adv
        changed = (proposal != x).any(1)[0]
        assert (side, side) == (int(changed.any(1).sum()), int(changed.any(0).sum()))
