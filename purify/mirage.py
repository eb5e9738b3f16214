"""A purifier that lies: it looks robust to whoever does not differentiate it, and protects nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser
from robustgen.purify.base import Chain, Sanitiser, register_purifier, single_step
from robustgen.rng import ExampleRng

__all__ = ["Mirage"]


@register_purifier("mirage")
@dataclass(frozen=True, slots=True, kw_only=True)
class Mirage(Sanitiser):
    """Decoy: adds a fine wave of each pixel's own value, x + height sin(2 pi x / period); do not use it.

    A change that an attacker plans for the classifier comes out elsewhere on the wave, so transfer and BPDA fail; the
    exact gradient, which changes its sign with the wave, walks through.
    Source: made for this project, to hold evaluations to.
    Under attack: falls to the exact gradient.

    Args:
        height, period: of the wave, in pixels of [0, 1].
    """

    height: float = 0.125
    period: float = 0.16

    def __post_init__(self) -> None:
        if not (self.height > 0 and self.period > 0):
            raise SpecError(f"mirage: height and period must be above 0, got {self.height:g} and {self.period:g}.")

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """One step, not clipped."""

        def wave(x: Tensor) -> Tensor:
            return x + self.height * torch.sin(2 * math.pi * x / self.period)

        return single_step(wave)
