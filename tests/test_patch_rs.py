"""Patch-RS: it keeps only what helps, every query is a new one, and a linear classifier's optimum is nearly reached."""

from __future__ import annotations

import pytest
import torch

from robustgen.attacks.patch_rs import PatchRS
from robustgen.errors import SpecError
from robustgen.oracle import Oracle
from robustgen.patch_threat import PatchThreat
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import make_convnet, make_images, make_linear
from tests.test_attacks import attack_all
from tests.test_patch_pgd import least_margin


@pytest.mark.parametrize("text", ["patch:3x2", "patch:2x2@3,1", "patch:6x8", "patch:1x1"])
def test_keeps_what_lowers_the_margin_and_asks_nothing_twice_running(text: str) -> None:
    """The kept margin is the least seen; a proposal differs from what is kept, in the window, and is 0 or 1 there."""
    model, threat = make_convnet(channels=3), ThreatModel.parse(text)
    assert isinstance(threat, PatchThreat)
    x, y = make_images(model, 6, (3, 6, 8))
    attack, oracle = PatchRS(queries=40), Oracle(model)
    s = attack.init(oracle, x, y, threat, ExampleRng.of(0, range(6)))
    seen, moved, painted, least = [], 0, 0, s.x_next
    for _ in range(40):
        before, s = s, attack.step(oracle, s)
        seen.append(s.gap(s.logits))
        assert torch.equal(torch.stack(seen).amin(0), s.best)
        least = torch.where((s.best < before.best)[:, None, None, None], s.x_adv, least)
        assert torch.equal(least, x.masked_scatter(threat.window(s.kept_place, x).expand_as(x), s.kept))
        assert threat.contains(x, s.x_adv).all()
        window = threat.window(before.place, x).expand_as(x)
        assert torch.isin(s.x_adv[window], torch.tensor([0.0, 1.0])).all()
        same = (s.content == s.kept).flatten(1).all(1) & (s.place == s.kept_place)
        assert not same.any() or (threat.places(x) == (1, 1) and s.i[0] % 4 == 0 and threat.place is None)
        moved += int((s.place != s.kept_place).sum())
        painted += int((s.content != s.kept).flatten(1).any(1).sum())
    assert painted > 0
    assert (moved > 0) == (threat.places(x) != (1, 1))


@pytest.mark.parametrize(("text", "share"), [("patch:2x2@3,1", 0.999), ("patch:2x2", 0.6)])
@pytest.mark.parametrize("shape", [(1, 6, 7), (3, 6, 7)])
def test_near_the_optimum_of_a_linear_classifier(shape: tuple[int, int, int], text: str, share: float) -> None:
    """At a given place the closed form is reached; anywhere most of the largest fall; never more than all of it."""
    model, threat = make_linear(shape, classes=2, seed=1), ThreatModel.parse(text)
    assert isinstance(threat, PatchThreat)
    x, y = make_images(model, 8, shape)
    attack, oracle = PatchRS(queries=300), Oracle(model)
    s = attack.init(oracle, x, y, threat, ExampleRng.of(0, range(8)))
    clean, least = s.gap(model(x)).double(), least_margin(model, x, y, threat)
    for _ in range(300):
        s = attack.step(oracle, s)
    assert (s.best >= least - 1e-6).all()
    assert float(((clean - s.best) / (clean - least)).mean()) >= share


def test_a_budget_is_kept_and_a_goal_reached() -> None:
    """No more queries than were allowed; towards a class the prediction becomes that class."""
    model = make_linear((1, 8, 8), classes=4)
    x, y = make_images(model, 12)
    threat = ThreatModel.parse("patch:5x5")
    outcomes = attack_all(PatchRS().limited(30), model, x, y, threat, batch_size=12, order=list(range(12)))
    assert all(o.forwards <= 30 for o in outcomes.values())
    assert any(o.broken for o in outcomes.values())


@pytest.mark.parametrize(("options", "says"), [({"queries": 0}, "patch-rs: queries"), ({"p_init": 1.5}, "p_init")])
def test_bad_parameters(options: dict[str, float], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=says):
        PatchRS(**options)  # type: ignore[arg-type]
