"""A median filter as a defence."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser
from robustgen.purify.base import Chain, Sanitiser, register_purifier, single_step
from robustgen.rng import ExampleRng

__all__ = ["Median", "median_filter"]


@register_purifier("median")
@dataclass(frozen=True, slots=True, kw_only=True)
class Median(Sanitiser):
    """The median of each pixel's neighbourhood, the edge mirrored.

    Source: Xu et al. 2018 (feature squeezing), arXiv:1704.01155, section III-B. Its gradient is exact: 1 for the pixel
    that is the median. Of an even window the lower median is taken.
    Under attack: falls to gradients that cross it (Athalye et al. 2018, arXiv:1802.00420).

    Args:
        size: side of the window.
    """

    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 2:
            raise SpecError(f"median: size must be >= 2, got {self.size}.")

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """One step."""
        return single_step(lambda x: median_filter(x, self.size))


def median_filter(x: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> the same shape; differentiable."""
    batch, channels, height, width = x.shape
    if size > min(height, width):
        raise SpecError(f"median: size {size} is larger than the image, {height} x {width}.")
    before, after = (size - 1) // 2, size // 2
    padded = F.pad(x, (before, after, before, after), mode="reflect")
    windows = F.unfold(padded, size).reshape(batch, channels, size * size, height * width)
    return windows.median(2).values.reshape(x.shape)
