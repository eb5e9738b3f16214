"""What both forms of APGD keep: the point to be queried and the best point so far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from robustgen.attacks.base import Query, State
from robustgen.threat import per_row

__all__ = ["Ascent", "keep_best"]


@dataclass(kw_only=True)
class Ascent(State):
    """An ascent on a loss in mid-flight, row by row. Image tensors are (B, C, H, W), the others (B,)."""

    x_next: Tensor  # x^(k+1), queried by the next round
    x_max: Tensor  # best point so far
    grad_max: Tensor  # gradient there
    f_max: Tensor  # loss there; -inf before the first query
    eta: Tensor  # step size
    target: Tensor  # int64, class of a targeted loss; y for the others


A = TypeVar("A", bound=Ascent)


def keep_best(s: A, query: Query) -> A:
    """x_max, f_max and the gradient there, after x_next was queried."""
    better = query.loss > s.f_max
    here = per_row(better, s.x)
    return replace(
        s,
        x_max=torch.where(here, s.x_next, s.x_max),
        grad_max=torch.where(here, query.grad, s.grad_max),
        f_max=torch.where(better, query.loss, s.f_max),
    )
