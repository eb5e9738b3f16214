"""Digital: contrast, elastic transform, pixelation and JPEG.

Images x are (B, C, H, W) float64 in [0, 1]; the result may leave [0, 1], and is cut by the caller. Source of all kinds:
Hendrycks & Dietterich 2019, arXiv:1903.12261, section 4.1 and appendix.
"""

from __future__ import annotations

import numpy as np
import torch

from robustgen.corruptions.draw import Array, box, centred, sample, uniform
from robustgen.purify.base import run_chain
from robustgen.purify.jpeg import Jpeg
from robustgen.rng import ExampleRng

__all__ = ["contrast", "elastic_transform", "jpeg_compression", "pixelate"]


def contrast(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """Draw every pixel towards the mean of its channel; c is (share that stays,)."""
    mean = x.mean((2, 3), keepdims=True)
    drawn: Array = mean + c[0] * (x - mean)
    return drawn


def elastic_transform(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """Stretch the image by a smooth random field and a random linear map; c is (pixels, sigma, pixels of the map).

    Source: also Simard et al. 2003, "Best practices for convolutional neural networks", section 2.
    Differs: the field has the root mean square given in each direction, so that severities are in order; the
    published one trades amplitude against smoothness.
    """
    from scipy import ndimage

    amplitude, sigma, stretch = (value * scale for value in c)
    height, width = x.shape[2:]
    rough = 2 * uniform(rng, (2, height, width), "elastic_transform") - 1
    field = ndimage.gaussian_filter(rough, (0, 0, sigma, sigma), mode="mirror")
    field /= np.maximum(np.sqrt((field**2).mean((2, 3), keepdims=True)), 1e-12)
    rows, columns = centred(height, width)
    linear = (2 * uniform(rng, (2, 2), "elastic_transform/map") - 1) * stretch / (max(height, width) / 2)
    down = amplitude * field[:, 0] + linear[:, 0, 0, None, None] * rows + linear[:, 0, 1, None, None] * columns
    right = amplitude * field[:, 1] + linear[:, 1, 0, None, None] * rows + linear[:, 1, 1, None, None] * columns
    return sample(x, rows + (height - 1) / 2 + down, columns + (width - 1) / 2 + right)


def pixelate(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """Average into fewer pixels, and enlarge these again; c is (share of the edge,).

    Differs: where an old pixel lies in two new ones it gets a share of each, not the value of one.
    """
    height, width = x.shape[2:]
    return box(box(x, max(1, round(c[0] * height)), max(1, round(c[0] * width))), height, width)


def jpeg_compression(x: Array, c: tuple[float, ...], rng: ExampleRng, scale: float) -> Array:
    """Through Pillow's codec; c is (quality,)."""
    images = run_chain(Jpeg(quality=int(c[0])).chain(None, rng), torch.from_numpy(x))
    return np.asarray(images.numpy(), np.float64)
