"""Local gradient smoothing, a defence against patches: what is noisy is darkened."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.fields import NOT_NEGATIVE, SHARE, WHOLE, check_value
from robustgen.generator.denoiser import Denoiser
from robustgen.purify.base import Chain, Sanitiser, register_purifier, single_step
from robustgen.rng import ExampleRng

__all__ = ["GradientSmoothing", "local_gradients", "smooth_gradients"]


@register_purifier("lgs")
@dataclass(frozen=True, slots=True, kw_only=True)
class GradientSmoothing(Sanitiser):
    """Windows in which the image changes much are darkened where it changes, since a patch is noisier than an image.

    g is the length of the image's gradient, scaled to [0, 1] over the image; it is kept in windows where its mean
    exceeds a threshold, and is 0 elsewhere; the image becomes x (1 - clip(smoothing g, 0, 1)).

    Source: Naseer et al. 2019, arXiv:1807.01216.
    Differs: gradients are forward differences of the mean over channels, 0 beyond the last row and column; the last
    windows lie flush with the far edges; a window larger than the image is the image.
    Its gradient is exact: through g, its scale and the clipping. Which windows are kept is a step, whose derivative is
    0 wherever it has one; an attack by gradients does not see that a window would leave or enter.
    Under attack: falls to attacks that know of it (Chiang et al. 2020, arXiv:2003.06693).

    Args:
        window: side of the windows, in pixels.
        overlap: of neighbouring windows, in pixels.
        threshold: of the mean of g, in [0, 1).
        smoothing: lambda.
    """

    window: int = 15
    overlap: int = 5
    threshold: float = 0.1
    smoothing: float = 2.3

    def __post_init__(self) -> None:
        check_value("lgs: window", self.window, WHOLE)
        if not 0 <= self.overlap < self.window:
            raise SpecError(f"lgs: overlap must be 0 to {self.window - 1}, less than window, got {self.overlap}.")
        check_value("lgs: threshold", self.threshold, SHARE)
        check_value("lgs: smoothing", self.smoothing, NOT_NEGATIVE)

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """One step."""
        return single_step(lambda x: smooth_gradients(x, self))


def smooth_gradients(x: Tensor, settings: GradientSmoothing) -> Tensor:
    """(B, C, H, W) in [0, 1] -> the same shape and range; differentiable but for the choice of windows."""
    g = local_gradients(x)
    kept = _windows_above(g.detach(), settings)
    return x * (1 - (settings.smoothing * torch.where(kept, g, 0.0)).clamp(0, 1))


def local_gradients(x: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1]: length of the gradient of images (B, C, H, W), least 0 and largest 1; 0 where flat."""
    grey = x.mean(1, keepdim=True)
    down, across = F.pad(grey.diff(dim=2), (0, 0, 0, 1)), F.pad(grey.diff(dim=3), (0, 1))
    squared = down.square() + across.square()
    length = torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)  # the root has no derivative at 0
    low, high = length.amin((2, 3), keepdim=True), length.amax((2, 3), keepdim=True)
    return (length - low) / torch.where(high > low, high - low, 1.0)


def _windows_above(g: Tensor, settings: GradientSmoothing) -> Tensor:
    """(B, 1, H, W) bool: pixels of windows in which the mean of g (B, 1, H, W) exceeds the threshold."""
    kept = torch.zeros_like(g, dtype=torch.bool)
    rows, columns = (_starts(side, settings) for side in g.shape[2:])
    for row in rows:
        for column in columns:
            place = (..., slice(row, row + settings.window), slice(column, column + settings.window))
            kept[place] |= g[place].mean((2, 3), keepdim=True) > settings.threshold
    return kept


def _starts(side: int, settings: GradientSmoothing) -> list[int]:
    """Where windows begin along a side."""
    last = max(0, side - settings.window)
    return sorted({*range(0, last, settings.window - settings.overlap), last})
