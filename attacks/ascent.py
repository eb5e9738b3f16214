"""What both forms of APGD keep: the point to be queried and the best point so far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from robustgen.attacks.base import Query, State
from robustgen.attacks.losses import margin
from robustgen.threat import per_row

__all__ = ["A", "Ascent", "keep_best"]


@dataclass(kw_only=True)
class Ascent(State):
    """An ascent on a loss in mid-flight, row by row. Image tensors are (B, C, H, W), the others (B,)."""

    x_next: Tensor  # x^(k+1), queried by the next round
    x_max: Tensor  # best point so far
    grad_max: Tensor  # gradient there
    f_max: Tensor  # loss there; -inf before the first query
    eta: Tensor  # step size
    target: Tensor  # int64, class of a targeted loss; y for the others
    gap_min: Tensor  # smallest z_y - z_t so far, t being the nearest wrong class where there is no target; inf at first
    gap_seen: Tensor  # the same at the last look, at first that of the first query


A = TypeVar("A", bound=Ascent)


def keep_best(s: A, query: Query) -> A:
    """x_max, f_max and the gradient there, and the gap to the target, after x_next was queried."""
    better = query.loss > s.f_max
    gap = _gap(s, query.logits)
    here = per_row(better, s.x)
    return replace(
        s,
        x_max=torch.where(here, s.x_next, s.x_max),
        grad_max=torch.where(here, query.grad, s.grad_max),
        f_max=torch.where(better, query.loss, s.f_max),
        gap_seen=torch.where(s.i == 0, gap, s.gap_seen),
        gap_min=torch.minimum(gap, s.gap_min),
    )


def _gap(s: Ascent, logits: Tensor) -> Tensor:
    """(B,) z_y - z_t; the margin where the target is y, or where there is a goal."""
    if s.goal is not None:
        return s.gap(logits)
    towards: Tensor = (logits.gather(1, s.y[:, None]) - logits.gather(1, s.target[:, None])).squeeze(1)
    return torch.where(s.target == s.y, margin(logits, s.y), towards)
