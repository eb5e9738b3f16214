"""Losses: against the formulas of the papers, and their substitutes with few classes."""

from __future__ import annotations

import math

import pytest
import torch

from robustgen.attacks.losses import CE, DLR, LOSSES, Margin, TargetedDLR, TargetedMargin, margin, ranked_classes

Z = torch.tensor([[3.0, -1.0, 2.0, 0.5, 1.0], [0.0, 4.0, 1.0, -2.0, 3.5]])
Y = torch.tensor([0, 4])


def test_values_by_hand() -> None:
    """Each formula on numbers that fit in the head."""
    assert [1.0, -0.5] == margin(Z, Y).tolist()
    assert [-1.0, 0.5] == Margin()(Z, Y).tolist()
    torch.testing.assert_close(DLR()(Z, Y), torch.tensor([-(3 - 2) / (3 - 1), -(3.5 - 4) / (4 - 1)]))
    target = torch.tensor([3, 0])
    expected = torch.tensor([-(3 - 0.5) / (3 - (1 + 0.5) / 2), -(3.5 - 0) / (4 - (1 + 0) / 2)])
    torch.testing.assert_close(TargetedDLR()(Z, Y, target), expected)
    assert [-2.5, -3.5] == TargetedMargin()(Z, Y, target).tolist()
    log_sum = math.log(sum(math.exp(v) for v in Z[0].tolist()))
    assert math.isclose(log_sum - 3.0, float(CE()(Z, Y)[0]), rel_tol=1e-6)


def test_probability_margin_by_hand() -> None:
    """Two classes one apart: the difference of their probabilities is tanh(1/2)."""
    z = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(LOSSES["pm"](z, torch.tensor([0])), -torch.tanh(torch.tensor([0.5])))


def test_ranked_classes_leave_out_the_label() -> None:
    """Nearest wrong class first."""
    assert [[2, 4, 3, 1], [1, 2, 0, 3]] == ranked_classes(Z, Y).tolist()


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_few_classes_are_finite_and_named(name: str, classes: int) -> None:
    """No loss needs a logit that is not there, and a substitute is named in the protocol."""
    loss = LOSSES[name]
    logits = torch.randn(6, classes, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) % classes
    value = loss(logits, y, (y + 1) % classes)
    assert value.shape == (6,)
    assert value.isfinite().all()
    assert loss.protocol(classes).startswith(name)
    substituted = {"dlr": classes < 3, "dlr-t": classes < 4}.get(name, False)
    assert substituted == (loss.protocol(classes) != name)


@pytest.mark.parametrize("name", ["dlr", "dlr-t"])
def test_ratio_losses_ignore_scale_and_shift(name: str) -> None:
    """What makes DLR worth its name: it does not saturate when logits are multiplied."""
    loss, target = LOSSES[name], torch.tensor([2, 1])
    torch.testing.assert_close(loss(Z, Y, target), loss(1000 * Z + 7, Y, target), rtol=1e-4, atol=1e-5)
