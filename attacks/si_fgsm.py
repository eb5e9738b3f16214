"""SI-FGSM: momentum on the mean gradient over darker copies of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import QueryModel
from robustgen.attacks.momentum import Look, Momentum, MomentumState, at_the_iterate
from robustgen.fields import WHOLE, check_value
from robustgen.registry import register_attack

__all__ = ["SIFGSM"]


@register_attack("si-fgsm")
@dataclass(frozen=True, slots=True, kw_only=True)
class SIFGSM(Momentum):
    """The gradient is the mean over m copies of that of J(x / 2^i), i = 0 .. m - 1. Each round sends m images.

    Source: Lin et al. 2020, arXiv:1908.06281, section 3.3 and Algorithm 1.
    Differs: with the momentum of MI instead of NI; and as `robustgen.attacks.momentum` says.
    """

    copies: int = 5  # m
    name: ClassVar[str] = "si-fgsm"

    def __post_init__(self) -> None:
        Momentum.__post_init__(self)
        check_value("si-fgsm: copies", self.copies, WHOLE)

    def look(self, oracle: QueryModel, s: MomentumState, last: Tensor) -> Look:
        first = at_the_iterate(oracle, s, self.loss)
        total = torch.clone(first.grad)
        for i in range(1, self.copies):
            share = 0.5**i
            total += share * oracle.grad(share * s.x_next, s.y, s.aimed(self.loss)).grad
        return Look(first.point, first.logits, total / self.copies)
