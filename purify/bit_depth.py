"""Fewer bits a pixel as a defence."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser
from robustgen.purify.base import Chain, Sanitiser, register_purifier, single_step, straight_through
from robustgen.rng import ExampleRng

__all__ = ["BitDepth"]


@register_purifier("bit-depth")
@dataclass(frozen=True, slots=True, kw_only=True)
class BitDepth(Sanitiser):
    """Round pixels to 2^bits levels.

    Source: Xu et al. 2018 (feature squeezing), arXiv:1704.01155, section III-A. The gradient goes straight through.
    Under attack: falls to BPDA (Athalye et al. 2018, arXiv:1802.00420).

    Args:
        bits: 1 to 8.
    """

    bits: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise SpecError(f"bit-depth: bits must be 1 to 8, got {self.bits}.")

    def squeeze(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] on the grid, without a gradient."""
        levels = 2**self.bits - 1
        rounded: Tensor = (x.clamp(0, 1) * levels).round() / levels
        return rounded

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """One step."""
        return single_step(lambda x: straight_through(x, self.squeeze(x)))
