"""`Denoiser`: D(x; sigma, class), the one interface to every generator.

Images of generators are in [-1, 1], those of classifiers in [0, 1]: **a sigma in pixels of [0, 1] is twice as large
here.** `to_generator_range`, `to_pixel_range` and `generator_sigma` are the only places that know.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from robustgen.errors import SpecError

__all__ = [
    "Denoiser",
    "DenoiserWarning",
    "Guided",
    "generator_sigma",
    "to_generator_range",
    "to_pixel_range",
    "to_uint8",
]


class DenoiserWarning(UserWarning):
    """A denoiser is used where it was not trained."""


def to_generator_range(x: Tensor) -> Tensor:
    """Images in [0, 1] to [-1, 1]."""
    return x * 2 - 1


def to_pixel_range(x: Tensor) -> Tensor:
    """Images in [-1, 1] to [0, 1], clipped."""
    return (x * 0.5 + 0.5).clamp(0, 1)


def to_uint8(x: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] to (B, H, W, C) uint8: clip(127.5 x + 128, 0, 255), truncated (as EDM does)."""
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def generator_sigma(sigma: float) -> float:
    """A noise level in pixels of [0, 1], as threat models and smoothing have it, in generator units."""
    return 2 * sigma


class Denoiser(nn.Module, ABC):
    """The mean of the clean image given a noisy one: D(x; sigma, class) = E[x0 | x0 + sigma noise = x, class].

    The score is (D - x) / sigma^2, the flow dx/dsigma = (x - D) / sigma. Differentiable in x. Nothing random inside.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes; 0 for a generator that knows none.
        sigma_min, sigma_max: between which it was trained, or is exact; generator units.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        self.shape, self.classes = shape, classes
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._warned = False

    @abstractmethod
    def _denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """D for checked arguments: sigma (B, 1, 1, 1) of the dtype of x, label (B,) int64 with -1 for no class."""

    def forward(self, x: Tensor, sigma: float | Tensor, label: Tensor | int | None = None) -> Tensor:
        """Denoise.

        Args:
            x: (B, C, H, W) floating point, clean images in [-1, 1] plus noise.
            sigma: standard deviation of the noise, in generator units: a number, or (B,) for one a row.
            label: (B,) int64 in 0 .. classes - 1, or one number for all rows; -1 or None for no class.

        Returns:
            (B, C, H, W), the dtype of x; not clipped.

        Raises:
            SpecError: wrong shape, a sigma that is not above 0, a class that there is not.
        """
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise SpecError(f"this generator makes images {self.shape}, got a batch (B, C, H, W) of {tuple(x.shape)}.")
        level = torch.as_tensor(sigma, dtype=x.dtype)
        if level.ndim > 1 or (level.ndim == 1 and len(level) != len(x)):
            raise SpecError(f"sigma must be one number, or one a row ({len(x)},), got shape {tuple(level.shape)}.")
        self._check_sigma(level)
        rows = level.to(x.device).expand(len(x)).reshape(-1, 1, 1, 1)
        return self._denoise(x, rows, self._labels(label, x))

    def _check_sigma(self, sigma: Tensor) -> None:
        if sigma.numel() == 0 or sigma.is_meta:  # on the meta device numbers have no value
            return
        low, high = float(sigma.min()), float(sigma.max())
        if not (low > 0 and high < float("inf")):
            raise SpecError(f"sigma must be above 0 and finite, got {low if not low > 0 else high:g}.")
        slack = 1 + 1e-4  # sigmas come through float32 and through roots and powers
        if not self._warned and (low * slack < self.sigma_min or high > self.sigma_max * slack):
            self._warned = True  # once is enough: a sampler would say it at each step
            warnings.warn(
                f"sigma {low if low * slack < self.sigma_min else high:g} is outside {self.sigma_min:g} .. "
                f"{self.sigma_max:g}, for which this generator was trained.",
                DenoiserWarning,
                stacklevel=3,
            )

    def _labels(self, label: Tensor | int | None, x: Tensor) -> Tensor | None:
        if label is None:
            return None
        labels = torch.as_tensor(label, device=x.device)
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise SpecError(f"classes are whole numbers, got {labels.dtype}.")
        if labels.ndim > 1 or (labels.ndim == 1 and len(labels) != len(x)):
            raise SpecError(f"label must be one number, or one a row ({len(x)},), got shape {tuple(labels.shape)}.")
        if labels.numel() and not labels.is_meta and (int(labels.min()) < -1 or int(labels.max()) >= self.classes):
            wrong = int(labels.min()) if int(labels.min()) < -1 else int(labels.max())
            known = f"has the classes 0 to {self.classes - 1}" if self.classes else "knows no classes"
            raise SpecError(f"class {wrong}: this generator {known} (-1 for no class).")
        return labels.long().expand(len(x))


class Guided(Denoiser):
    """Classifier-free guidance: D_w = D(x; s, none) + w (D(x; s, c) - D(x; s, none)), two evaluations a call.

    Source: Ho & Salimans 2022, arXiv:2207.12598, eq. (6) with w for their 1 + w.

    Raises:
        SpecError: the denoiser knows no classes.
    """

    def __init__(self, denoiser: Denoiser, weight: float) -> None:
        if not denoiser.classes:
            raise SpecError("guidance needs a generator that knows classes; drop --guidance.")
        super().__init__(denoiser.shape, denoiser.classes, denoiser.sigma_min, denoiser.sigma_max)
        self.denoiser, self.weight = denoiser, weight

    def _denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        level = sigma.reshape(-1)
        if label is None:
            plain: Tensor = self.denoiser(x, level)
            return plain
        none = torch.full_like(label, -1)
        free, bound = self.denoiser(torch.cat([x, x]), level.repeat(2), torch.cat([none, label])).chunk(2)
        guided: Tensor = free + self.weight * (bound - free)
        return guided
