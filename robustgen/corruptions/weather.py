"""Weather: snow, frost, fog and brightness. Lengths are in pixels of a 32 x 32 image and grow by `scale`.

Images x are (B, C, H, W) float64 in [0, 1], C of 1 or 3; the result may leave [0, 1], and is cut by the caller. Source
of all kinds: Hendrycks & Dietterich 2019, arXiv:1903.12261, section 4.1 and appendix.
"""

from __future__ import annotations

import math

import numpy as np

from robustgen.corruptions.blur import along
from robustgen.corruptions.draw import Array, enlarge, normal, plasma, uniform
from robustgen.rng import ExampleRng

__all__ = ["brightness", "fog", "frost", "snow"]

_ICE = (0.80, 0.92, 1.00)  # its colour
_FLAKE = 1.5  # pixels: size of a flake
_LUMA = (0.299, 0.587, 0.114)  # weights of grey, ITU-R BT.601


def snow(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """Flakes that fall aslant, over a brighter scene; c is (mean, threshold, length, keep).

    Differs: flakes are drawn on a grid of their own size, in place of a cut-out of a larger image.
    """
    mean, threshold, length, keep = c
    height, width = x.shape[2:]
    coarse = (math.ceil(height / (_FLAKE * scale)) + 1, math.ceil(width / (_FLAKE * scale)) + 1)
    field = enlarge(normal(rng, coarse, "snow"), height, width)
    layer = mean + 0.3 * field / np.maximum(field.std((1, 2), keepdims=True), 1e-12)
    flakes = np.where(layer < threshold, 0, layer).clip(0, 1)[:, None]
    angle = -(1 + 2 * uniform(rng, (1,), "snow/angle")[:, 0]) * math.pi / 4  # falling, up to 45 degrees off
    flakes = along(flakes, angle, length * scale, length * scale / 2)
    grey = _grey(x)
    scene = keep * x + (1 - keep) * np.maximum(x, 1.5 * grey + 0.5)
    return scene + flakes + flakes[:, :, ::-1, ::-1]


def frost(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """keep x + add ice, thickest at the border; c is (keep, add).

    Differs: the ice is drawn, as ridges of fractal noise; the published one is cut from six photographs.
    """
    height, width = x.shape[2:]
    ridges = 1 - np.abs(2 * plasma(rng, height, width, 1.5, "frost") - 1)
    cloud = plasma(rng, height, width, 2.0, "frost/cloud")
    rows, columns = (np.abs(np.linspace(-1, 1, size)) for size in (height, width))
    border = np.maximum(rows[:, None], columns[None, :])
    ice = (0.6 * ridges**2 + 0.4 * cloud) * (0.5 + 0.5 * border)
    colour = np.asarray(_ICE if x.shape[1] == 3 else (1.0,))[None, :, None, None]
    return c[0] * x + c[1] * colour * ice[:, None]


def fog(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """Add a fractal cloud and bring the brightest value back to where it was; c is (amount, decay).

    Differs: the cloud is made of octaves of noise, in place of midpoint displacement with the same decay.
    """
    amount, decay = c
    cloud = plasma(rng, x.shape[2], x.shape[3], decay, "fog")[:, None]
    highest = np.maximum(x.max((1, 2, 3), keepdims=True), 1e-12)
    foggy: Array = (x + amount * cloud) * highest / (highest + amount)
    return foggy


def brightness(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """Raise the value in HSV, hue and saturation unchanged; c is (by how much,)."""
    value = x.max(1, keepdims=True)
    raised = np.minimum(value + c[0], 1)
    brighter: Array = np.where(value > 0, x * raised / np.maximum(value, 1e-12), raised)
    return brighter


def _grey(x: Array) -> Array:
    """(B, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    return np.asarray((x * np.asarray(_LUMA)[None, :, None, None]).sum(1, keepdims=True))
