"""What a network costs: weights, multiplications, images a second."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from robustgen.generator.denoiser import Denoiser

__all__ = ["Cost", "measure_cost"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one denoiser.

    Attributes:
        weights: number of parameters.
        mflops: of one evaluation of one image, in millions; a multiplication with its addition counts as two.
        images_per_second: evaluations a second in one batch, without gradients; None where not measured.
    """

    weights: int
    mflops: float
    images_per_second: float | None


@torch.no_grad()
def measure_cost(denoiser: Denoiser, *, batch_size: int = 64, seconds: float = 1.0) -> Cost:
    """Count on one image, and time batches for `seconds` (0 for not at all; on the meta device it must be 0)."""
    where = next(denoiser.parameters()).device
    weights = sum(parameter.numel() for parameter in denoiser.parameters())
    sigma = (max(denoiser.sigma_min, 1e-3) * min(denoiser.sigma_max, 80.0)) ** 0.5
    label = torch.zeros(1, dtype=torch.long, device=where) if denoiser.classes else None
    counter = FlopCounterMode(display=False)
    with counter:
        denoiser(torch.zeros(1, *denoiser.shape, device=where), sigma, label)
    speed = None
    if seconds > 0:
        x = torch.zeros(batch_size, *denoiser.shape, device=where)
        label = None if label is None else label.expand(batch_size)
        denoiser(x, sigma, label)  # warms up
        begun, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begun) < seconds:
            denoiser(x, sigma, label)
            done += batch_size
            if where.type == "cuda":
                torch.cuda.synchronize(where)
        speed = done / max(elapsed, 1e-9)
    return Cost(weights=weights, mflops=counter.get_total_flops() / 1e6, images_per_second=speed)
