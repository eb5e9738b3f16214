"""Bandits: a gradient that is remembered from step to step and shared by neighbouring pixels; two probes a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.attacks.estimates import Estimated, EstimatedState
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, norm_of, per_row

__all__ = ["Bandits", "BanditsState"]

_TINY = 1e-12


@dataclass(kw_only=True)
class BanditsState(EstimatedState):
    """`prior` (B, C, h, w): v, the gradient as remembered, one value a tile."""

    prior: Tensor


@register_attack("bandits")
@dataclass(frozen=True, slots=True, kw_only=True)
class Bandits(Estimated):
    """Scores only: bandit optimisation of the gradient with a time and a tile prior (Bandits-TD).

    Source: Ilyas et al. 2019, arXiv:1807.07978, Algorithms 1 to 3: Delta = (L(x + eta q1) - L(x + eta q2)) u /
    (delta eta) at q = v +- delta u, u ~ N(0, I / d); v by exponentiated gradients in Linf and by gradient ascent else;
    x along sign(v), or v / ||v||.
    Differs: untargeted, with the margin as loss (`loss=ce` is the paper's); q is brought to unit L2 norm, as in the
    authors' code; probes are clipped to [0, 1]; the iterate is queried where a probe was misclassified, since only a
    point inside eps counts. Rates are the paper's order of size, for logits as they come.
    """

    tile: int = 2  # pixels along the edge of a tile
    delta: float = 1.0  # how far a probe explores around v
    eta: float = 0.1  # how far from x it lies, in L2
    rate: float = 10.0  # of v's update
    name: ClassVar[str] = "bandits"

    def __post_init__(self) -> None:
        Estimated.__post_init__(self)
        if self.tile < 1:
            raise SpecError(f"bandits: tile is a number of pixels, at least 1, got {self.tile}.")
        if not all(0 < value < math.inf for value in (self.delta, self.eta, self.rate)):
            raise SpecError(
                f"bandits: delta, eta and rate must be positive, got {self.delta}, {self.eta} and {self.rate}."
            )

    def pairs(self) -> int:
        return 1

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **common: Any) -> BanditsState:
        prior = x.new_zeros(*x.shape[:2], *(-(-edge // self.tile) for edge in x.shape[2:]))
        return BanditsState.start(x, y, threat, rng, **{**common, "u": prior}, prior=prior)

    def direction(self, s: BanditsState) -> Tensor:
        u = s.rng.normal(s.prior.shape[1:], "bandits", s.i, s.x.device).to(s.x)
        return u / math.sqrt(s.prior[0].numel())

    def probe(self, s: BanditsState, side: int) -> Tensor:
        """x + eta q / ||q||, q = v +- delta u over the tiles."""
        q = self._spread_out(s, s.prior + side * self.delta * s.u)
        return (s.here + self.eta * q / per_row(norm_of(q, "l2").clamp(min=_TINY), s.x)).clamp(0, 1)

    def add(self, s: BanditsState) -> BanditsState:
        """Algorithm 1, then v by Delta."""
        delta = per_row((s.first - s.gain) / (self.delta * self.eta), s.x) * s.u
        if s.threat.norm != "linf":
            return replace(s, prior=s.prior + self.rate * delta)
        inside = 1 - torch.finfo(s.prior.dtype).eps  # exponentiated gradients of p = (1 + v) / 2, without overflow
        return replace(s, prior=torch.tanh(torch.atanh(s.prior.clamp(-inside, inside)) + self.rate * delta))

    def move(self, s: BanditsState) -> BanditsState:
        way = s.threat.steepest(self._spread_out(s, s.prior))
        return replace(s, here=s.threat.project(s.x, s.here + self.rel_step * s.threat.eps * way))

    def asks_iterate(self, s: BanditsState) -> Tensor:
        return s.missed

    def _spread_out(self, s: BanditsState, tiles: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, H, W), each value over its tile; tiles at the far edges may be cut."""
        wide = tiles.repeat_interleave(self.tile, 2).repeat_interleave(self.tile, 3)
        return wide[:, :, : s.x.shape[2], : s.x.shape[3]]
