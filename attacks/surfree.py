"""SurFree: circles through the image and a point of the boundary, in random planes; no gradient is estimated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.attacks.cosines import from_frequencies
from robustgen.attacks.decision import OWN, TINY, DecisionBased, DecisionState, Phase
from robustgen.attacks.phases import where
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, norm_of, per_row

__all__ = ["SurFree", "SurFreeState"]

_SCAN, _TURN = OWN, OWN + 1
_KAPPA = 0.02  # by how much theta_max changes
_RIGHT = math.pi / 2  # at a right angle the circle is back at x


@dataclass(kw_only=True)
class SurFreeState(DecisionState):
    """The plane under way; `low` and `high` hold angles while a row turns.

    Attributes:
        way: (B, C, H, W), v, of unit length and orthogonal to u.
        reach: (B,), theta_max, in radians.
        tried: (B,) int64, angles tried in this plane, then bisections done.
        side: (B,), -1 or +1, the side of the angle that was found.
    """

    way: Tensor
    reach: Tensor
    tried: Tensor
    side: Tensor


@register_attack("surfree")
@dataclass(frozen=True, slots=True, kw_only=True)
class SurFree(DecisionBased):
    """Labels only: turns along circles on which every point is nearer to x, in planes of low frequencies.

    Source: Maho et al. 2021, arXiv:2011.12807, sections 3 and 4: z(theta) = d cos(theta) (u cos(theta) +
    v sin(theta)), angles theta_max (1, -1, (T-1)/T, ...), theta_max a little larger after a success and smaller after
    a failure, then a bisection of the angle; v Gaussian in the low half of the DCT.
    Differs: v is made orthogonal to u but not to the planes before; the first angle is bisected up to twice itself;
    starts are noise of several grains.
    """

    angles: int = 3  # T
    bisections: int = 5
    frequencies: float = 0.5  # share of them along each edge
    name: ClassVar[str] = "surfree"

    def __post_init__(self) -> None:
        DecisionBased.__post_init__(self)
        if self.angles < 1 or self.bisections < 1:
            raise SpecError(
                f"surfree: angles and bisections must be at least 1, got {self.angles} and {self.bisections}."
            )
        if not 0 < self.frequencies <= 1:
            raise SpecError(f"surfree: frequencies is a share above 0 and up to 1, got {self.frequencies}.")

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **common: Any) -> SurFreeState:
        reach = x.new_full((len(x),), math.pi / 6)
        tried = torch.zeros_like(y)
        return SurFreeState.start(x, y, threat, rng, **common, way=x, reach=reach, tried=tried, side=reach)

    def learn(self) -> Sequence[Phase]:
        return self._learn_scan, self._learn_turn

    def propose(self) -> Sequence[Phase]:
        return self._propose_scan, _propose_turn

    def arrive(self, s: SurFreeState) -> SurFreeState:
        """A new plane through x and `here`."""
        height, width = s.x.shape[2:]
        kept = (math.ceil(self.frequencies * height), math.ceil(self.frequencies * width))
        v = from_frequencies(s.rng.normal((s.x.shape[1], *kept), "plane", s.i, s.x.device).to(s.x), height, width)
        u = _towards(s)
        v = v - per_row((v * u).sum((1, 2, 3)), s.x) * u
        v = v / per_row(norm_of(v, "l2").clamp(min=TINY), s.x)
        return replace(s, way=v, tried=torch.zeros_like(s.tried), phase=torch.full_like(s.phase, _SCAN))

    def _angle(self, s: SurFreeState) -> Tensor:
        """(B,) the next of theta_max (1, -1, (T-1)/T, -(T-1)/T, ..., 1/T, -1/T)."""
        size = s.reach * (self.angles - s.tried // 2) / self.angles
        return torch.where(s.tried % 2 == 0, size, -size)

    def _propose_scan(self, s: SurFreeState) -> SurFreeState:
        return replace(s, x_next=_on_circle(s, self._angle(s)))

    def _learn_scan(self, s: SurFreeState) -> SurFreeState:
        """An angle that is misclassified is bisected; after the last one that is not comes another plane."""
        angle, tried = self._angle(s), s.tried + 1
        size = angle.abs()
        beyond = torch.where(s.tried < 2, 2 * size, size + s.reach / self.angles)
        failed = ~s.wrong & (tried == 2 * self.angles)
        reach = torch.where(s.wrong, s.reach / (1 - _KAPPA), torch.where(failed, s.reach * (1 - _KAPPA), s.reach))
        s = replace(
            s, low=size, high=beyond.clamp(max=_RIGHT), side=angle.sign(), reach=reach.clamp(max=_RIGHT / 2),
            tried=torch.where(s.wrong, 0, tried), phase=torch.where(s.wrong, _TURN, _SCAN),
        )  # fmt: skip
        return where(s, failed, self.arrive)

    def _learn_turn(self, s: SurFreeState) -> SurFreeState:
        middle, tried = (s.low + s.high) / 2, s.tried + 1
        low, high = torch.where(s.wrong, middle, s.low), torch.where(s.wrong, s.high, middle)
        s = replace(s, low=low, high=high, tried=tried)
        return where(s, tried == self.bisections, lambda part: self.arrive(_moved(part)))


def _towards(s: SurFreeState) -> Tensor:
    """u, (B, C, H, W): from x to `here`, of unit length."""
    gap = s.here - s.x
    return gap / per_row(norm_of(gap, "l2").clamp(min=TINY), s.x)


def _on_circle(s: SurFreeState, angle: Tensor) -> Tensor:
    """x + z(theta), clipped to [0, 1]; `here` at the angle 0, x at a right angle."""
    d = norm_of(s.here - s.x, "l2")
    along, aside = per_row(d * torch.cos(angle) ** 2, s.x), per_row(d * torch.cos(angle) * torch.sin(angle), s.x)
    return (s.x + along * _towards(s) + aside * s.way).clamp(0, 1)


def _propose_turn(s: SurFreeState) -> SurFreeState:
    return replace(s, x_next=_on_circle(s, s.side * (s.low + s.high) / 2))


def _moved(s: SurFreeState) -> SurFreeState:
    """At the largest angle that was misclassified."""
    return replace(s, here=_on_circle(s, s.side * s.low))
