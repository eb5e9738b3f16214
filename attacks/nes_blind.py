"""NES that knows of monitors: its probes lie far apart and are disguised. It sees scores, never gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.attacks.estimates import Estimated, EstimatedState, half
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, per_row

__all__ = ["NESBlind"]


@register_attack("nes-blind")
@dataclass(frozen=True, slots=True, kw_only=True)
class NESBlind(Estimated):
    """NES whose probes are further away, shifted and darkened at random; the iterate is asked after a miss only.

    g = sum of (L+ - L-) u / (2 sigma): the disguise is taken for one that the classifier does not mind, and what it
    does change is noise of the estimate.

    Source: Ilyas et al. 2018, arXiv:1804.08598, Algorithm 1, with the query blinding of Chen et al. 2020,
    arXiv:1907.05587, section 6, by a fixed function instead of a trained one.
    Differs: untargeted, the margin as loss, steps along the steepest direction of the norm; shifts are cyclic.
    """

    samples: int = 20  # probes behind an estimate
    sigma: float = 0.1  # of the probes, in pixels of [0, 1]
    shift: int = 1  # pixels, at most, along each axis
    darken: float = 0.1  # part by which a probe is darker, at most
    rel_step: float = 0.3
    name: ClassVar[str] = "nes-blind"

    def __post_init__(self) -> None:
        Estimated.__post_init__(self)
        half(self.name, self.samples)
        if not 0 < self.sigma < math.inf:
            raise SpecError(f"nes-blind: sigma must be positive, got {self.sigma}.")
        if self.shift < 0 or not 0 <= self.darken < 1:
            raise SpecError(
                f"nes-blind: shift must be >= 0 and darken in [0, 1), got {self.shift} and {self.darken:g}."
            )

    def pairs(self) -> int:
        return half(self.name, self.samples)

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **common: Any) -> EstimatedState:
        return EstimatedState.start(x, y, threat, rng, **common)

    def direction(self, s: EstimatedState) -> Tensor:
        return s.rng.normal(s.x.shape[1:], "nes-blind", s.i, s.x.device).to(s.x)

    def probe(self, s: EstimatedState, side: int) -> Tensor:
        return self._disguise((s.here + side * self.sigma * s.u).clamp(0, 1), s)

    def add(self, s: EstimatedState) -> EstimatedState:
        return replace(s, estimate=s.estimate + per_row(s.first - s.gain, s.x) * s.u / (2 * self.sigma))

    def move(self, s: EstimatedState) -> EstimatedState:
        way = self.rel_step * s.threat.eps * s.threat.steepest(s.estimate)
        return replace(s, here=s.threat.project(s.x, s.here + way))

    def asks_iterate(self, s: EstimatedState) -> Tensor:
        return s.missed

    def _disguise(self, x: Tensor, s: EstimatedState) -> Tensor:
        """(B, C, H, W): shifted cyclically and darkened, each row as its round draws."""
        draws = s.rng.uniform((3,), "disguise", s.i, x.device)
        offsets = (draws[:, :2] * (2 * self.shift + 1)).floor().long() - self.shift
        rows, columns = (
            (torch.arange(size, device=x.device) - offsets[:, k : k + 1]) % size for k, size in enumerate(x.shape[2:])
        )
        batch = torch.arange(len(x), device=x.device)[:, None, None]
        moved = x[batch, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
        return moved * per_row(1 - self.darken * draws[:, 2], x).to(x)
