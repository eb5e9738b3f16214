"""MI-FGSM: iterated steps along a gradient with momentum, which transfer better than steps without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustgen.attacks.base import QueryModel
from robustgen.attacks.momentum import Look, Momentum, MomentumState, at_the_iterate
from robustgen.registry import register_attack

__all__ = ["MIFGSM"]


@register_attack("mi-fgsm")
@dataclass(frozen=True, slots=True, kw_only=True)
class MIFGSM(Momentum):
    """The momentum iterative method: the gradient is taken at the iterate.

    Source: Dong et al. 2018, arXiv:1710.06081, Algorithm 1.
    Differs: as `robustgen.attacks.momentum` says.
    """

    name: ClassVar[str] = "mi-fgsm"

    def look(self, oracle: QueryModel, s: MomentumState, last: Tensor) -> Look:
        return at_the_iterate(oracle, s, self.loss)
