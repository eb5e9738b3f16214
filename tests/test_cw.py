"""Carlini and Wagner: the optimum for each c, the search for c, and Adam against torch's."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from robustgen.attacks.cw import CW
from robustgen.errors import SpecError
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import make_convnet, make_images
from tests.nearest_helpers import FarLinear


def test_steps_are_those_of_adam() -> None:
    """Without the cosine: torch.optim.Adam on the same objective, by autograd through tanh."""
    model = make_convnet(classes=4).double()
    x, y = make_images(make_convnet(classes=4), 3, (1, 8, 8))
    x, oracle, attack = 0.1 + 0.8 * x.double(), Oracle(model), CW(steps=20, searches=1, c=1.0, rate=0.03)
    w = torch.atanh((2 * x - 1) * 0.999).requires_grad_()
    adam = torch.optim.Adam([w], lr=0.03)
    state = attack.init(oracle, x, y, ThreatModel.unbounded("l2"), ExampleRng.of(0, range(3)))
    for k in range(19):
        image = (torch.tanh(w) + 1) / 2
        z = model(image)
        gap = z.gather(1, y[:, None]).squeeze(1) - z.scatter(1, y[:, None], -math.inf).amax(1)
        adam.zero_grad()
        ((image - x).square().sum() + gap.clamp(min=0).sum()).backward()
        adam.param_groups[0]["lr"] = 0.03 * (1 + math.cos(math.pi * k / 20)) / 2
        adam.step()
        state = attack.step(oracle, state)
        torch.testing.assert_close(state.w, w.detach(), atol=1e-6, rtol=0)


def test_optimum_for_a_small_c() -> None:
    """On a linear classifier |d|^2 + c f is least at d = -c grad f / 2, as long as that does not reach the boundary."""
    model = FarLinear((1, 8, 8), classes=2)
    x, y = model.images(3)
    attack, oracle = CW(steps=400, searches=1, c=0.2, rate=0.01), Oracle(model)
    state = attack.init(oracle, x, y, ThreatModel.unbounded("l2"), ExampleRng.of(0, range(3)))
    for _ in range(attack.rounds):
        last, state = state, attack.step(oracle, state)
    slope = (model.weight[1] - model.weight[0]).reshape(1, 1, 8, 8)
    assert not last.hit.any()
    torch.testing.assert_close(state.x_adv, x + 0.1 * slope, atol=2e-4, rtol=0)


def test_search_multiplies_until_it_breaks_then_halves() -> None:
    """c is ten times larger after each failure until the first success, then in the middle of its bracket."""
    model = FarLinear((1, 8, 8), classes=2)
    x, y = model.images(3)
    attack, oracle = CW(steps=60, searches=8, c=0.01, rate=0.02), Oracle(model)
    states = [attack.init(oracle, x, y, ThreatModel.unbounded("l2"), ExampleRng.of(0, range(3)))]
    hits = []
    for k in range(attack.rounds):
        states.append(attack.step(oracle, states[-1]))
        if (k + 1) % 60 == 0:
            hits.append(states[-2].hit | (states[-1].logits.argmax(1) != y))
            assert not torch.equal(states[-1].w, states[0].w), "the next c goes on where this one ended"
            assert not torch.stack([part.any() for part in (states[-1].m, states[-1].v, states[-1].hit)]).any()
    starts = states[::60]
    broke = torch.zeros(3, dtype=torch.bool)
    for hit, (before, after) in zip(hits, pairwise(starts), strict=True):
        broke |= hit
        low, high = torch.where(hit, before.low, before.c), torch.where(hit, before.c, before.high)
        torch.testing.assert_close(after.c, torch.where(broke, (low + high) / 2, 10 * before.c))
        assert (after.low <= after.high).all()
    assert broke.all()
    assert not hits[0].any()


def test_a_search_begins_where_the_last_one_ended() -> None:
    """Steps of Adam are at most its rate, so one search of these comes nowhere near the boundary; several get there."""
    model = FarLinear((1, 8, 8), classes=2)
    x, y = model.images(3)
    oracle, once = Oracle(model), CW(steps=4, searches=1, rate=0.01, c=1000.0)
    for attack, breaks in ((once, False), (CW(steps=4, searches=100, rate=0.01, c=1000.0), True)):
        state = attack.init(oracle, x, y, ThreatModel.unbounded("l2"), ExampleRng.of(0, range(3)))
        broken = torch.zeros(3, dtype=torch.bool)
        for _ in range(attack.rounds):
            state = attack.step(oracle, state)
            broken |= state.logits.argmax(1) != y
        assert broken.all() if breaks else not broken.any()


def test_an_overshoot_says_nothing_of_c() -> None:
    """The first, long steps cross the boundary and come back: this c is too small, and the next one is larger."""
    model = FarLinear((1, 8, 8), classes=2)
    x, y = model.images(3)
    attack, oracle = CW(steps=100, searches=2, c=0.2, rate=0.5), Oracle(model)
    state = attack.init(oracle, x, y, ThreatModel.unbounded("l2"), ExampleRng.of(0, range(3)))
    crossed = []
    for _ in range(100):
        state = attack.step(oracle, state)
        crossed.append(state.logits.argmax(1) != y)
    assert torch.stack(crossed[:50]).any(0).all()
    assert not torch.stack(crossed[50:]).any()
    torch.testing.assert_close(state.c, torch.full((3,), 2.0))


@pytest.mark.parametrize("options", [{"steps": 0}, {"searches": 0}, {"rate": 0.0}, {"c": 0.0}, {"steps": 9000}])
def test_bad_parameters(options: dict[str, float]) -> None:
    """One sentence each; the last asks for more rounds than have streams of their own."""
    with pytest.raises(SpecError, match="cw: "):
        CW(**options)  # type: ignore[arg-type]
