"""VT-FGSM: momentum on gradients that are tuned by how they vary around the iterate before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import QueryModel
from robustgen.attacks.momentum import Look, Momentum, MomentumState, at_the_iterate, reach_of
from robustgen.fields import POSITIVE, WHOLE, check_value
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

__all__ = ["VTFGSM"]


@dataclass(kw_only=True)
class VTState(MomentumState):
    """`v` (B, C, H, W): how the gradient varied around the iterate before."""

    v: Tensor


@register_attack("vt-fgsm")
@dataclass(frozen=True, slots=True, kw_only=True)
class VTFGSM(Momentum):
    """g accumulates grad + v, v being the mean gradient around the iterate before less the gradient there.

    Each round sends 1 + samples images; neighbours are uniform within beta eps in every pixel.

    Source: Wang & He 2021, arXiv:2103.15571, Algorithm 1.
    Differs: in L2 and L1 eps is spread over all pixels to draw neighbours; and as `robustgen.attacks.momentum` says.
    """

    samples: int = 20  # N
    beta: float = 1.5
    name: ClassVar[str] = "vt-fgsm"

    def __post_init__(self) -> None:
        Momentum.__post_init__(self)
        check_value("vt-fgsm: samples", self.samples, WHOLE)
        check_value("vt-fgsm: beta", self.beta, POSITIVE)

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **common: Any) -> VTState:
        return VTState.start(x, y, threat, rng, v=torch.zeros_like(x), **common)

    def look(self, oracle: QueryModel, s: VTState, last: Tensor) -> Look:
        here = at_the_iterate(oracle, s, self.loss)
        total = torch.zeros_like(s.x)
        reach = self.beta * reach_of(s.threat, s.x)
        for k in range(self.samples):
            r = reach * (2 * s.rng.uniform(s.x.shape[1:], f"vt {k}", s.i, s.x.device).to(s.x) - 1)
            total += oracle.grad(s.x_next + r, s.y, s.aimed(self.loss)).grad
        return here._replace(varies=total / self.samples - here.grad)

    def tune(self, s: VTState, seen: Look) -> tuple[VTState, Tensor]:
        assert seen.varies is not None
        return replace(s, v=seen.varies), seen.grad + s.v
