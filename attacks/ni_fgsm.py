"""NI-FGSM: momentum whose gradient is taken one step ahead, as Nesterov's accelerated gradient does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import QueryModel
from robustgen.attacks.momentum import Look, Momentum, MomentumState
from robustgen.registry import register_attack
from robustgen.threat import per_row

__all__ = ["NIFGSM"]


@register_attack("ni-fgsm")
@dataclass(frozen=True, slots=True, kw_only=True)
class NIFGSM(Momentum):
    """The gradient is taken at x + alpha mu g, with alpha = eps / steps.

    Source: Lin et al. 2020, arXiv:1908.06281, eq. (6) to (8).
    Differs: as `robustgen.attacks.momentum` says; with gradients of mean 1 the look ahead is about as long as a step.
    """

    name: ClassVar[str] = "ni-fgsm"

    def look(self, oracle: QueryModel, s: MomentumState, last: Tensor) -> Look:
        ahead = s.x_next + s.threat.eps / self.steps * self.decay * s.g
        point = torch.where(per_row(last, s.x), s.x_next, ahead)
        query = oracle.grad(point, s.y, s.aimed(self.loss))
        return Look(point, query.logits, query.grad)
