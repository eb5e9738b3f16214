"""NES against monitors: its disguise and its step against the formula in float64, and what Blacklight sees of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robustgen.attacks.nes_blind import NESBlind
from robustgen.attacks.plans import parse_attack
from robustgen.errors import SpecError
from robustgen.rng import ExampleRng
from robustgen.service.monitors import Blacklight
from robustgen.threat import ThreatModel
from tests.helpers import make_images, make_linear
from tests.query_helpers import double_task, rounds_of


def _loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The margin by which another class wins."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]


def test_an_estimate_is_that_of_the_formula() -> None:
    """Each probe is rolled and darkened by its round's draws; the step is along the sum of (L+ - L-) u."""
    model, x, y = double_task((2, 5, 4))
    eps, samples = 0.05, 4
    states = rounds_of(NESBlind(samples=samples), model, x, y, ThreatModel("linf", eps), samples)
    rng, total = ExampleRng.of(0, range(3)), torch.zeros_like(x)
    for pair in range(samples // 2):
        u = rng.normal((2, 5, 4), "nes-blind", 2 * pair).double()
        losses = []
        for k, side in enumerate((1, -1)):
            probes = []
            for row, draw in zip(
                (x + side * 0.1 * u).clamp(0, 1), rng.uniform((3,), "disguise", 2 * pair + k), strict=True
            ):
                down, right = (int(d * 3) - 1 for d in draw[:2])
                probes.append(row.roll((down, right), (1, 2)) * (1 - 0.1 * draw[2]).double())
            sent = states[2 * pair + k + 1].x_adv
            torch.testing.assert_close(sent, torch.stack(probes), atol=1e-6, rtol=0)
            losses.append(_loss(model(sent), y))
        total += (losses[0] - losses[1]).reshape(-1, 1, 1, 1) * u
    expected = (x + 0.3 * eps * total.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    torch.testing.assert_close(states[-1].here, expected, atol=1e-6, rtol=0)


def test_blacklight_sees_the_plain_attack_and_not_this_one() -> None:
    """Of forty queries on noise: NES shares half a fingerprint with an earlier one within twenty, this one never."""
    model = make_linear((1, 12, 12))
    x, y = make_images(model, 1, (1, 12, 12))
    seen: dict[str, Any] = {}
    for text in ("nes", "nes-blind"):
        monitor = Blacklight(threshold=25, key=3)
        states = rounds_of(parse_attack(text), model, x, y, ThreatModel("linf", 0.02), 40)
        alarms = [monitor.see("a", s.x_adv[0]) for s in states[1:]]
        seen[text] = alarms.index(True) if any(alarms) else None
    assert seen["nes-blind"] is None
    assert 0 < seen["nes"] < 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": 3}, "samples come in pairs"), ({"sigma": 0.0}, "sigma must be positive"),
        ({"shift": -1}, "shift must be >= 0"), ({"darken": 1.0}, "darken in"),
    ],
)  # fmt: skip
def test_bad_parameters(options: dict[str, float], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=says):
        NESBlind(**options)  # type: ignore[arg-type]
