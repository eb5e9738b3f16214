"""Blur: defocus, glass, motion and zoom. Lengths are in pixels of a 32 x 32 image and grow with the image by `scale`.

Images x are (B, C, H, W) float64 in [0, 1]. Source of all kinds: Hendrycks & Dietterich 2019, arXiv:1903.12261, section
4.1 and appendix.
"""

from __future__ import annotations

import math

import numpy as np

from robustgen.corruptions.draw import Array, centred, sample, uniform
from robustgen.rng import ExampleRng

__all__ = ["along", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]

_FINER = 16  # points a pixel, along each axis, that say how much of it a disc covers


def defocus_blur(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """The average over a disc around each pixel; c is (radius,).

    Differs: the disc covers pixels in part, which the published one makes by blurring its edge.
    """
    from scipy import ndimage

    disc = _disc(c[0] * scale)
    blurred: Array = ndimage.correlate(x, disc[None, None], mode="mirror")
    return blurred


def _disc(radius: float) -> Array:
    """(k, k) weights that add to 1: how much of each pixel lies within the radius."""
    reach = math.ceil(radius - 0.5)
    size = 2 * max(reach, 0) + 1
    rows, columns = centred(size * _FINER, size * _FINER)
    inside = (rows**2 + columns**2 <= (radius * _FINER) ** 2).astype(np.float64)
    weights = inside.reshape(size, _FINER, size, _FINER).sum((1, 3))
    return np.asarray(weights / weights.sum())


def glass_blur(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """Blur, move each pixel to a random place near by, blur again; c is (sigma, reach).

    Differs: each pixel takes the value at a place within the reach, between pixels too, all at once, so that severities
    are in order; the published one swaps whole pixels, one pair after the other.
    """
    sigma, reach = (value * scale for value in c)
    height, width = x.shape[2:]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    moves = reach * (2 * uniform(rng, (2, height, width), "glass_blur") - 1)
    return _gaussian(sample(_gaussian(x, sigma), rows + moves[:, 0], columns + moves[:, 1]), sigma)


def _gaussian(x: Array, sigma: float) -> Array:
    from scipy import ndimage

    blurred: Array = ndimage.gaussian_filter(x, (0, 0, sigma, sigma), mode="mirror")
    return blurred


def motion_blur(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """The average along a line to one side, at an angle of up to 45 degrees; c is (length, sigma)."""
    angle = (uniform(rng, (1,), "motion_blur")[:, 0] - 0.5) * math.pi / 2
    return along(x, angle, c[0] * scale, c[1] * scale)


def along(x: Array, angle: Array, length: float, sigma: float) -> Array:
    """The average from each pixel to `length` pixels away at its angle (B,), with the weights of a normal density."""
    rows, columns = np.mgrid[0 : x.shape[2], 0 : x.shape[3]].astype(np.float64)
    steps = np.linspace(0, length, 2 * math.ceil(length) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down, right = (part(angle)[:, None, None] for part in (np.sin, np.cos))
    total = np.zeros_like(x)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        total += weight * sample(x, rows - step * down, columns - step * right)
    return total


def zoom_blur(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """The average of the image and its magnifications about the centre, in steps of 1 %; c is (largest factor,)."""
    height, width = x.shape[2:]
    rows, columns = centred(height, width)
    factors = np.arange(1.0, c[0] + 1e-9, 0.01)
    total = np.zeros_like(x)
    for factor in factors:
        total += sample(x, rows / factor + (height - 1) / 2, columns / factor + (width - 1) / 2)
    return total / len(factors)
