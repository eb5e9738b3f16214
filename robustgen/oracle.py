"""The oracle: all that an attack may ask of a classifier, and the place where queries are counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustgen.attacks.base import Query
from robustgen.attacks.losses import LossFn

__all__ = ["Cost", "Oracle"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Images sent forward and backward through the classifier."""

    forwards: int = 0
    backwards: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forwards + other.forwards, self.backwards + other.backwards)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.forwards - other.forwards, self.backwards - other.backwards)


class Oracle:
    """Answers queries in the search form of a classifier.

    Args:
        model: (B, C, H, W) float32 in [0, 1] -> (B, K) float32, eval mode, parameters frozen.
        eot: draws averaged in each query of a stochastic model (expectation over transformation; Athalye et al.
            2018, arXiv:1802.00420, section 4.2); 1 for deterministic models.
    """

    def __init__(self, model: nn.Module, *, eot: int = 1) -> None:
        self.model = model
        self.eot = eot
        self.cost = Cost()

    def logits(self, x: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, K) float32, averaged over `eot` draws, without gradients; rows that are `known` are taken from there."""
        self.cost += Cost(forwards=len(x) * self.eot)
        if known is None or not known[0].any():
            return self._forward(x)
        rows, logits = (~known[0]).nonzero().flatten(), known[1].clone()
        if len(rows):
            logits[rows] = self._forward(x[rows])
        return logits

    def _forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            total = sum(self.model(x) for _ in range(self.eot))
        assert isinstance(total, Tensor)
        return total / self.eot

    def grad(self, x: Tensor, y: Tensor, loss: LossFn) -> Query:
        """Loss (B,), its gradient (B, C, H, W) and logits (B, K) at x, each the mean of `eot` draws.

        Where the loss does not depend on x the gradient is zero.
        """
        losses, grads, outputs = [], [], []
        for _ in range(self.eot):
            leaf = x.detach().requires_grad_()
            logits = self.model(leaf)
            value = loss(logits, y)
            grad = None
            if value.requires_grad:
                (grad,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
            losses.append(value.detach())
            grads.append(torch.zeros_like(x) if grad is None else grad)
            outputs.append(logits.detach())
        self.cost += Cost(len(x) * self.eot, len(x) * self.eot)
        if self.eot == 1:
            return Query(losses[0], grads[0], outputs[0])
        return Query(*(torch.stack(part).mean(0) for part in (losses, grads, outputs)))
