"""Denoisers whose D is known exactly: a Gaussian, and a set of points; for tests, and as controls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser

__all__ = ["GaussianDenoiser", "MixtureDenoiser"]


class GaussianDenoiser(Denoiser):
    """Data N(mean, std^2), independent pixels: D = mean + std^2 / (std^2 + sigma^2) (x - mean).

    Args:
        mean: (C, H, W), of the data.
        std: standard deviation of each pixel, a number or (C, H, W); 0 for data that is one point.
        classes: labels that are accepted, and change nothing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: float | Tensor, classes: int = 0) -> None:
        super().__init__((mean.shape[0], mean.shape[1], mean.shape[2]), classes, 0.0, math.inf)
        self.register_buffer("mean", mean.double())
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float64))

    def _denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        mean, variance = self.mean.to(x), self.std.to(x) ** 2
        return mean + variance / (variance + sigma**2) * (x - mean)

    def flow(self, x: Tensor, sigma: float, sigma_end: float = 0.0) -> Tensor:
        """Where the exact probability flow takes x from sigma to sigma_end; float64."""
        shrink = ((self.std**2 + sigma_end**2) / (self.std**2 + sigma**2)).sqrt()
        return self.mean + shrink * (x.double() - self.mean)


class MixtureDenoiser(Denoiser):
    """Data that is one of the points y_i: D = sum_i w_i y_i with w = softmax(-|x - y_i|^2 / (2 sigma^2)).

    Sampling it gives these points again: the positive control of every test for memorisation.

    Args:
        points: (N, C, H, W) in [-1, 1].
        labels: (N,) int64; with them, a class is the mixture of its own points. Every class needs one.

    Raises:
        SpecError: no points, or a class without any.
    """

    points: Tensor
    labels: Tensor | None

    def __init__(self, points: Tensor, labels: Tensor | None = None) -> None:
        if points.ndim != 4 or not len(points):
            raise SpecError(f"a mixture needs points (N, C, H, W), got shape {tuple(points.shape)}.")
        classes = 0 if labels is None else int(labels.max()) + 1
        if labels is not None and len(labels.unique()) != classes:
            raise SpecError(f"a mixture needs points of every class 0 to {classes - 1}.")
        super().__init__((points.shape[1], points.shape[2], points.shape[3]), classes, 0.0, math.inf)
        self.register_buffer("points", points.double())
        self.register_buffer("labels", labels)

    def _denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        flat, points = x.double().flatten(1), self.points.flatten(1)
        differences = flat[:, None, :] - points[None, :, :]  # (B, N, D); exact, where cdist cancels
        scores = -differences.square().sum(2) / (2 * sigma.double().reshape(-1, 1) ** 2)
        if label is not None and self.labels is not None:
            foreign = (label[:, None] >= 0) & (self.labels[None, :] != label[:, None])
            scores = scores.masked_fill(foreign, -math.inf)
        return (scores.softmax(1) @ points).reshape(x.shape).to(x.dtype)
