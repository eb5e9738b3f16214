"""NES: projected ascent on a gradient estimated by Gaussian probes in pairs. It sees scores, never gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from robustgen.attacks.estimates import Estimated, EstimatedState, both_sides, half
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

__all__ = ["NES"]


@register_attack("nes")
@dataclass(frozen=True, slots=True, kw_only=True)
class NES(Estimated):
    """Scores only: g = mean of L(x + sigma u) u / sigma over antithetic Gaussian u, then a projected step.

    Source: Ilyas et al. 2018, arXiv:1804.08598, Algorithm 1 and section 2.2: antithetic sampling, sign steps in Linf,
    with the momentum of the authors' code.
    Differs: untargeted, along the steepest direction of the norm; the loss is the margin, which loses no digits where
    the softmax is 1 (`loss=ce` is the paper's); probes are clipped to [0, 1], and a pair counts by the difference of
    what was sent; fewer probes an estimate than the paper, for smaller images.
    """

    samples: int = 20  # probes behind an estimate
    sigma: float = 0.01  # of the probes, in pixels of [0, 1]
    momentum: float = 0.9  # share of an estimate that the next one begins with
    rel_step: float = 0.2
    name: ClassVar[str] = "nes"

    def __post_init__(self) -> None:
        Estimated.__post_init__(self)
        half(self.name, self.samples)
        if not 0 < self.sigma < math.inf:
            raise SpecError(f"nes: sigma must be positive, got {self.sigma}.")
        if not 0 <= self.momentum < 1:
            raise SpecError(f"nes: momentum must be in [0, 1), got {self.momentum}.")

    def pairs(self) -> int:
        return half(self.name, self.samples)

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **common: Any) -> EstimatedState:
        return EstimatedState.start(x, y, threat, rng, **common)

    def direction(self, s: EstimatedState) -> Tensor:
        return s.rng.normal(s.x.shape[1:], "nes", s.i, s.x.device).to(s.x)

    def probe(self, s: EstimatedState, side: int) -> Tensor:
        return (s.here + side * self.sigma * s.u).clamp(0, 1)

    def kept(self, s: EstimatedState) -> Tensor:
        return self.momentum * s.estimate

    def add(self, s: EstimatedState) -> EstimatedState:
        return replace(s, estimate=s.estimate + both_sides(s, self.probe(s, 1), s.x_adv, self.sigma))

    def move(self, s: EstimatedState) -> EstimatedState:
        way = self.rel_step * s.threat.eps * s.threat.steepest(s.estimate)
        return replace(s, here=s.threat.project(s.x, s.here + way))
