"""Patch-PGD: the closed form on linear classifiers, the windows that it tries, and its schedule of rounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustgen.attacks.patch_pgd import PatchPGD
from robustgen.errors import SpecError
from robustgen.oracle import Oracle
from robustgen.patch_threat import PatchThreat
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import Linear, make_convnet, make_images, make_linear
from tests.test_attacks import attack_all


def least_margin(model: Linear, x: Tensor, y: Tensor, threat: PatchThreat) -> Tensor:
    """(B,) the smallest margin of two classes that any window with any content reaches: its pixels at 0 or 1."""
    slope = (model.weight[1] - model.weight[0]).reshape(x.shape[1:]) * (1 - 2 * y[:, None, None, None])
    gain = torch.maximum(slope * (1 - x), -slope * x).sum(1).double()
    margins = (model(x).double() @ torch.tensor([[1.0], [-1.0]]).double())[:, 0] * (1 - 2 * y)
    tops = [threat.place] if threat.place else [
        (r, c) for r in range(x.shape[2] - threat.height + 1) for c in range(x.shape[3] - threat.width + 1)
    ]  # fmt: skip
    sums = [gain[:, r : r + threat.height, c : c + threat.width].sum((1, 2)) for r, c in tops]
    return margins - torch.stack(sums).amax(0)


@pytest.mark.parametrize("text", ["patch:3x2", "patch:1x1", "patch:2x4@3,1", "patch:7x9"])
@pytest.mark.parametrize("shape", [(1, 7, 9), (3, 7, 9)])
def test_optimal_on_a_linear_classifier(text: str, shape: tuple[int, int, int]) -> None:
    """The first window asked holds the closed-form optimum; what can be broken is, in two queries, and nothing else."""
    model, threat = make_linear(shape, classes=2, seed=3), ThreatModel.parse(text)
    assert isinstance(threat, PatchThreat)
    x, y = make_images(model, 40, shape)
    optimum = least_margin(model, x, y, threat)
    attack, oracle, rng = PatchPGD(places=3, keep=1, steps=2), Oracle(model), ExampleRng.of(0, range(40))
    state = attack.step(oracle, attack.step(oracle, attack.init(oracle, x, y, threat, rng)))
    torch.testing.assert_close(optimum, state.gap(state.logits).double(), atol=2e-6, rtol=0)
    outcomes = attack_all(attack, model, x, y, threat, batch_size=40, order=list(range(40)))
    clear = optimum.abs() > 1e-5
    assert (optimum < 0)[clear].tolist() == [outcomes[k].broken for k in range(40) if clear[k]]
    assert all(o.forwards == 2 for o in outcomes.values() if o.broken)
    assert any(o.broken for o in outcomes.values())
    assert text != "patch:1x1" or not all(o.broken for o in outcomes.values())


def test_windows_are_tried_once_then_the_best_are_kept() -> None:
    """Every round until the search is over fills another window; then the largest losses get their steps, in order."""
    model, threat = make_convnet(channels=1), ThreatModel.parse("patch:3x3")
    x, y = make_images(model, 5, (1, 6, 7))
    attack, oracle = PatchPGD(places=9, keep=2, steps=3), Oracle(model)
    s = attack.step(oracle, attack.init(oracle, x, y, threat, ExampleRng.of(0, range(5))))
    tried, losses = s.tried, []
    for k in range(9):
        expected = torch.where(threat.window(tried[:, k], x), s.corner, x)  # type: ignore[attr-defined]
        s = attack.step(oracle, s)
        assert torch.equal(expected, s.x_adv)
        losses.append(-s.gap(s.logits))
    assert all(len(set(row)) == 9 for row in tried.tolist())
    order = torch.stack(losses, 1).argsort(dim=1, descending=True, stable=True)
    assert torch.equal(tried.gather(1, order), s.tried)
    for k in range(2):
        window = threat.window(s.tried[:, k], x)  # type: ignore[attr-defined]
        for turn in range(3):
            s = attack.step(oracle, s)
            assert torch.equal(torch.where(window, s.x_adv, x), s.x_adv)
            assert turn > 0 or torch.equal(torch.where(window, s.corner, x), s.x_adv)
    assert s.ended(attack.rounds).all()
    assert attack.rounds == int(s.i[0])


def test_windows_lie_apart_as_long_as_there_is_room() -> None:
    """The first few are half a window from each other in one direction at least."""
    model, threat = make_convnet(channels=1), ThreatModel.parse("patch:4x4")
    x, y = make_images(model, 6, (1, 16, 16))
    attack, oracle = PatchPGD(places=12, keep=1), Oracle(model)
    s = attack.step(oracle, attack.init(oracle, x, y, threat, ExampleRng.of(0, range(6))))
    row, column = s.tried // 13, s.tried % 13
    far = torch.maximum((row[:, :, None] - row[:, None]).abs(), (column[:, :, None] - column[:, None]).abs())
    assert (far + 2 * torch.eye(12, dtype=torch.int64) >= 2).all()


class Hidden(nn.Module):
    """Wrong only where the window at row 5, column 4 is grey: no corner of [0, 1] helps, and a gradient leads."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 2)."""
        off = (x[:, :, 5:7, 4:6] - 0.5).abs().mean((1, 2, 3))
        return torch.stack([off - 0.1, torch.zeros_like(off)], 1)


def test_ascent_goes_where_no_corner_is() -> None:
    """Steps of falling length come to the middle of [0, 1], from both sides."""
    x, y = torch.cat([torch.zeros(1, 1, 9, 9), torch.ones(1, 1, 9, 9)]), torch.zeros(2, dtype=torch.int64)
    found = attack_all(PatchPGD(), Hidden(), x, y, ThreatModel.parse("patch:2x2"), batch_size=2, order=[0, 1])
    assert found[0].broken
    assert found[1].broken


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"places": 0}, "patch-pgd: places"), ({"steps": 0}, "patch-pgd: steps"), ({"step_size": 0.0}, "step_size"),
        ({"places": 3, "keep": 4}, "keep must be at most places, got 4 of 3"),
    ],
)  # fmt: skip
def test_bad_parameters(options: dict[str, float], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=says):
        PatchPGD(**options)  # type: ignore[arg-type]
