"""Noise: Gaussian, shot and impulse.

Images x are (B, C, H, W) float64 in [0, 1]; the result may leave [0, 1], and is cut by the caller. Source of all kinds:
Hendrycks & Dietterich 2019, arXiv:1903.12261, section 4.1 and appendix.
"""

from __future__ import annotations

import numpy as np

from robustgen.corruptions.draw import Array, normal, uniform
from robustgen.rng import ExampleRng

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise"]


def gaussian_noise(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """x + sigma N(0, 1), as in poor light; c is (sigma,)."""
    return x + c[0] * normal(rng, x.shape[1:], "gaussian_noise")


def shot_noise(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """Poisson(x photons) / photons, by the inverse of its distribution function; c is (photons,)."""
    mean = x * c[0]
    u = uniform(rng, x.shape[1:], "shot_noise")
    weight = np.exp(-mean)  # of the count, and `total` of all counts up to it
    total, counts = weight.copy(), np.zeros_like(x)
    count = 0
    while (short := total < u).any():
        counts += short
        count += 1
        weight *= mean / count
        total += weight
    return counts / c[0]


def impulse_noise(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """A share of all values becomes 0 or 1, each half of the time; c is (share,)."""
    u = uniform(rng, x.shape[1:], "impulse_noise")
    out = x.copy()
    out[u < c[0]] = 1
    out[u < c[0] / 2] = 0
    return out
