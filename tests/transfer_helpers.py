"""What the tests of attacks with momentum share: the formula of MI-FGSM in float64, around any gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.attacks.base import Attack
from robustgen.threat import Norm, ThreatModel
from tests.query_helpers import double_task, rounds_of

SHAPE = (2, 6, 5)
BALLS: list[tuple[Norm, float]] = [("linf", 0.03), ("l2", 0.4)]


def slope(model: nn.Module, point: Tensor, y: Tensor) -> Tensor:
    """The gradient of the cross-entropy at a point."""
    leaf = point.detach().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    return grad


def size(grad: Tensor) -> Tensor:
    """(B, 1, 1, 1): mean of the absolute values."""
    return grad.abs().mean((1, 2, 3), keepdim=True)


def moved(x: Tensor, here: Tensor, g: Tensor, norm: Norm, eps: float, steps: int) -> Tensor:
    """One step of eps / steps along g, back into the ball and the box."""
    way = g.sign() if norm == "linf" else g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    delta = here + eps / steps * way - x
    if norm == "linf":
        return (x + delta.clamp(-eps, eps)).clamp(0, 1)
    length = delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    return (x + delta * (eps / length).clamp(max=1)).clamp(0, 1)


Gradient = Callable[[nn.Module, Tensor, Tensor, Tensor, int, float], Tensor]
"""Model, iterate, labels, g so far, turn and step -> the gradient that is accumulated."""


def check_two_steps(attack: Attack, norm: Norm, eps: float, gradient: Gradient) -> list[Any]:
    """Hold two steps of an attack with momentum to its formula, and the last round to the iterate; returns all states.

    The attack has decay 0.7 and two steps.
    """
    model, x, y = double_task(SHAPE)
    states = rounds_of(attack, model, x, y, ThreatModel(norm, eps), 3)
    here, g = x, torch.zeros_like(x)
    for turn in range(2):
        grad = gradient(model, here, y, g, turn, eps / 2)
        g = 0.7 * g + grad / size(grad)
        here = moved(x, here, g, norm, eps, 2)
        torch.testing.assert_close(states[turn + 1].x_next, here, atol=1e-9, rtol=0)
    torch.testing.assert_close(states[3].x_adv, here, atol=1e-9, rtol=0)
    torch.testing.assert_close(states[3].logits, model(here), atol=1e-9, rtol=0)
    return states
