"""What an attack sees of a defence against patches: the votes of many views of an image, with a gradient.

A view shows a part of the image and a constant elsewhere: an ablation, or an image under one or two masks. A defence
decides by the views' hard answers, which have no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustgen.patch_threat import PatchThreat

__all__ = ["Aim", "Lead", "Votes", "lead", "lead_over"]

Lead = Callable[[Tensor], Tensor]
"""Logits (N, K) -> (N, K): how far each class is from a vote of this view; it has one where this is >= 0."""

_TIE = 0.1  # of a vote: less than one, so that it decides between equals only


def lead(logits: Tensor) -> Tensor:
    """(N, K) z_c - max_{j != c} z_j, of logits (N, K): for views that vote for their most probable class."""
    top = logits.topk(min(2, logits.shape[1]), 1)
    first, second = top.values[:, :1], top.values[:, -1:]
    return logits - torch.where(logits == first, second, first)


def lead_over(theta: float) -> Lead:
    """For views that vote for every class with a probability of at least theta: log-odds p_c less those of theta."""
    least = torch.tensor(min(theta, 1 - 1e-6)).logit()

    def above(logits: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        best = logits.argmax(1, keepdim=True)
        others = logits.scatter(1, best, -torch.inf).logsumexp(1, keepdim=True)
        rest = log_p - torch.log1p(-log_p.exp().clamp(max=0.5))  # at most 1/2, but for the best one
        return torch.where(log_p >= log_p.gather(1, best), logits - others, rest) - least

    return above


@dataclass(frozen=True, slots=True)
class Aim:
    """Views that decide, and the windows from which they can be won.

    Attributes:
        keep: (V, 1, H, W) bool, what each view shows.
        fill: the value of all else.
        lead: when a view votes for what.
        open: (rows, columns) bool: places of the patch that promise anything, see `PatchThreat.places`.
    """

    keep: Tensor
    fill: float
    lead: Lead
    open: Tensor

    def touched(self, threat: PatchThreat, x: Tensor) -> Tensor:
        """(V,) bool: the views of x (1, C, H, W) that show a pixel of the threat's window, which has a place."""
        return (self.keep & threat.window(torch.zeros(1, dtype=torch.int64, device=x.device), x)).flatten(1).any(1)


class Votes(nn.Module):
    """Votes for each class over views; straight through to soft votes on the way back.

    The value counts votes; soft votes, at most a tenth of one together, decide between equals. The gradient is that of
    the soft votes, u / (1 + |u|) for a lead u: a view that is sure still pulls, though less than one in doubt.

    Args:
        classifier: (B, C, H, W) float32 -> logits (B, K), for images with `aim.fill` where nothing is shown.
        aim: the views.
        touched: (V,) bool, those that are asked.
        rest: (K,) votes of the others, which no change in the window can alter.
    """

    def __init__(self, classifier: nn.Module, aim: Aim, touched: Tensor, rest: Tensor) -> None:
        super().__init__()
        self.classifier, self.aim, self.rest, self.keep = classifier, aim, rest, aim.keep[touched]

    def leads(self, x: Tensor) -> Tensor:
        """(B, V, K) for images x (B, C, H, W)."""
        shown = torch.where(self.keep, x[:, None], self.aim.fill).flatten(0, 1)
        leads: Tensor = self.aim.lead(self.classifier(shown)).unflatten(0, (len(x), -1))
        return leads

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K)."""
        u = self.leads(x)
        soft = (u / (1 + u.abs())).sum(1)
        return self.rest + soft + (votes_of(u) - soft).detach()


def votes_of(leads: Tensor) -> Tensor:
    """(B, K) votes of leads (B, V, K), with what decides between equals."""
    soft = (1 + leads / (1 + leads.abs())) / 2
    return (leads >= 0).to(leads).sum(1) + _TIE * soft.mean(1)
