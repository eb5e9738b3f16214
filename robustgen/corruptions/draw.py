"""What several corruptions need: random numbers by example, bilinear sampling, fractal fields, box averages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from robustgen.rng import ExampleRng

__all__ = ["Array", "box", "centred", "enlarge", "normal", "plasma", "sample", "uniform"]

Array = npt.NDArray[np.float64]


def uniform(rng: ExampleRng, shape: tuple[int, ...], purpose: str) -> Array:
    """(B, *shape) in the open interval (0, 1), on a grid of 2^-24."""
    drawn: Array = rng.uniform(shape, f"corruption/{purpose}").double().numpy() + 2.0**-25
    return drawn


def normal(rng: ExampleRng, shape: tuple[int, ...], purpose: str) -> Array:
    """(B, *shape), standard normal."""
    drawn: Array = rng.normal(shape, f"corruption/{purpose}").double().numpy()
    return drawn


def centred(height: int, width: int) -> tuple[Array, Array]:
    """(H, W) rows and columns of all pixels, counted from the centre of the image."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    return rows - (height - 1) / 2, columns - (width - 1) / 2


def sample(x: Array, rows: Array, columns: Array) -> Array:
    """x (B, C, H, W) at the places rows, columns (B, H, W) or (H, W), bilinear; beyond the border it is mirrored."""
    batch, channels, height, width = x.shape
    rows, columns = (np.broadcast_to(part, (batch, height, width)) for part in (rows, columns))
    rows, columns = _mirrored(rows, height), _mirrored(columns, width)
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    flat = x.reshape(batch, channels, -1)

    def at(r: npt.NDArray[np.int64], c: npt.NDArray[np.int64]) -> Array:
        place = np.minimum(r, height - 1) * width + np.minimum(c, width - 1)
        index = np.broadcast_to(place.reshape(batch, 1, -1), flat.shape)
        return np.take_along_axis(flat, index, 2).reshape(x.shape)

    upper = (1 - right) * at(top, left) + right * at(top, left + 1)
    lower = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
    mixed: Array = (1 - down) * upper + down * lower
    return mixed


def _mirrored(places: Array, size: int) -> Array:
    """Places in 0 .. size - 1, reflected at both ends without repeating the outermost pixel."""
    if size == 1:
        return np.zeros_like(places)
    period = 2.0 * (size - 1)
    folded = np.mod(places, period)
    return np.minimum(folded, period - folded)


def plasma(rng: ExampleRng, height: int, width: int, decay: float, purpose: str) -> Array:
    """(B, H, W) fractal fields, each from 0 to 1: octaves of bilinear noise, each `decay` times as weak as the last.

    Source: value noise in octaves; what midpoint displacement (Fournier et al. 1982) makes step by step.
    """
    field: Array = np.zeros((len(rng.ids), height, width))
    for octave in range(1, math.ceil(math.log2(max(height, width, 2))) + 1):
        cells = 2**octave
        grid = uniform(rng, (cells + 1, cells + 1), f"{purpose}/{octave}")
        field += decay**-octave * enlarge(grid, height, width)
    low, high = field.min((1, 2), keepdims=True), field.max((1, 2), keepdims=True)
    scaled: Array = (field - low) / np.maximum(high - low, 1e-12)
    return scaled


def enlarge(grid: Array, height: int, width: int) -> Array:
    """(B, h, w) to (B, H, W), linear between the points, whose outermost lie on the border."""
    return np.asarray(_linear(grid.shape[1], height) @ grid @ _linear(grid.shape[2], width).T)


def _linear(points: int, size: int) -> Array:
    """(size, points) weights of linear interpolation."""
    place = np.linspace(0, points - 1, size)
    weights: Array = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(points)[None, :]))
    return weights


def box(x: Array, height: int, width: int) -> Array:
    """x (B, C, H, W) to (B, C, height, width): the average over the rectangle that each new pixel covers."""
    averaged: Any = _covering(x.shape[2], height) @ x @ _covering(x.shape[3], width).T
    return np.asarray(averaged)


def _covering(old: int, new: int) -> Array:
    """(new, old) shares of the old pixels in each new one, along one axis."""
    edges = np.linspace(0, old, new + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(old)[None, :]
    shared = np.minimum(high, pixels + 1) - np.maximum(low, pixels)
    shares: Array = np.maximum(shared, 0) * new / old
    return shares
