"""MALT: the order of targets is that of the exact distances on a linear classifier."""

from __future__ import annotations

import pytest
import torch

from robustgen.attacks.malt import MALT
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import make_images, make_linear


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_targets_are_the_nearest_boundaries(norm: str) -> None:
    """Restart r aims at the r-th nearest class in the closed form, which is not always the r-th largest logit."""
    model = make_linear(classes=6)
    with torch.no_grad():
        model.weight.mul_(torch.tensor([1.0, 3.0, 0.2, 1.0, 5.0, 0.5])[:, None])
    x, y = make_images(model, 30)
    logits, dual = model(x), {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[norm]
    gaps = torch.linalg.vector_norm(model.weight[y][:, None] - model.weight, ord=dual, dim=2)
    distance = (logits.gather(1, y[:, None]) - logits) / gaps.clamp(min=1e-9)
    exact = distance.scatter(1, y[:, None], torch.inf).argsort(1)
    by_logits = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    attack, threat = MALT(), ThreatModel(norm, 0.1)  # type: ignore[arg-type]
    for restart in range(5):
        rng = ExampleRng.of(0, range(30), [restart] * 30)
        assert torch.equal(exact[:, restart], attack.aim(Oracle(model), x, y, threat, rng))
    assert not torch.equal(exact[:, 0], by_logits[:, 0])


def test_few_candidates_and_few_classes() -> None:
    """Only the nearest by logits are looked at; with one class there is no target."""
    model = make_linear(classes=6)
    x, y = make_images(model, 5)
    threat, rng = ThreatModel("l2", 0.1), ExampleRng.of(0, range(5), [1] * 5)
    oracle = Oracle(model)
    MALT(candidates=2).aim(oracle, x, y, threat, rng)
    assert oracle.cost.backwards == 2 * 5
    single = make_linear(classes=1)
    assert torch.equal(torch.zeros(5).long(), MALT().aim(Oracle(single), x, 0 * y, threat, rng))
