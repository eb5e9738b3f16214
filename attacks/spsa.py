"""SPSA: ascent by Adam on a gradient estimated by probes along random signs. It sees scores, never gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.attacks.estimates import Estimated, EstimatedState, both_sides, half
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, norm_of, per_row

__all__ = ["SPSA", "SPSAState"]

_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8  # Adam's own


@dataclass(kw_only=True)
class SPSAState(EstimatedState):
    """Adam's moments `first_moment`, `second_moment` (B, C, H, W) and the steps taken `moves` (B,) int64."""

    first_moment: Tensor
    second_moment: Tensor
    moves: Tensor


@register_attack("spsa")
@dataclass(frozen=True, slots=True, kw_only=True)
class SPSA(Estimated):
    """Scores only: g = mean of (L(x + delta v) - L(x - delta v)) / (2 delta) v over random signs v, then Adam.

    Source: Uesato et al. 2018, arXiv:1802.05666, Algorithm 1, with the margin of logits as loss and Adam as optimiser,
    projected after every step.
    Differs: probes are clipped to [0, 1], and a pair counts by the difference of what was sent; the step of Adam has
    the length `rel_step` eps in the norm (the paper: a rate of 0.01 in Linf); fewer probes an estimate.
    """

    samples: int = 20  # probes behind an estimate
    delta: float = 0.01  # of the probes, in pixels of [0, 1]
    rel_step: float = 0.2
    name: ClassVar[str] = "spsa"

    def __post_init__(self) -> None:
        Estimated.__post_init__(self)
        half(self.name, self.samples)
        if not 0 < self.delta < math.inf:
            raise SpecError(f"spsa: delta must be positive, got {self.delta}.")

    def pairs(self) -> int:
        return half(self.name, self.samples)

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **common: Any) -> SPSAState:
        zero = torch.zeros_like(x)
        return SPSAState.start(
            x, y, threat, rng, **common, first_moment=zero, second_moment=zero, moves=torch.zeros_like(y)
        )

    def direction(self, s: SPSAState) -> Tensor:
        return s.rng.signs(s.x.shape[1:], "spsa", s.i, s.x.device).to(s.x)

    def probe(self, s: SPSAState, side: int) -> Tensor:
        return (s.here + side * self.delta * s.u).clamp(0, 1)

    def add(self, s: SPSAState) -> SPSAState:
        return replace(s, estimate=s.estimate + both_sides(s, self.probe(s, 1), s.x_adv, self.delta))

    def move(self, s: SPSAState) -> SPSAState:
        """Adam's direction (Kingma & Ba 2015, Algorithm 1), of the length of a step, up the loss."""
        g, t = s.estimate / per_row(s.pairs, s.x), (s.moves + 1).to(s.x)
        m = _BETA1 * s.first_moment + (1 - _BETA1) * g
        v = _BETA2 * s.second_moment + (1 - _BETA2) * g.square()
        unbiased = m / per_row(1 - _BETA1**t, s.x), v / per_row(1 - _BETA2**t, s.x)
        way = unbiased[0] / (unbiased[1].sqrt() + _TINY)
        if s.threat.norm != "linf":
            way = way / per_row(norm_of(way, s.threat.norm).clamp(min=_TINY), s.x)
        here = s.threat.project(s.x, s.here + self.rel_step * s.threat.eps * way)
        return replace(s, here=here, first_moment=m, second_moment=v, moves=s.moves + 1)
