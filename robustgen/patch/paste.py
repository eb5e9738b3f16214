"""A patch into images, differentiably: lighting, homography by grid_sample, blur; JPEG straight through.

Geometry: pixel (i, j) of an image is the unit square around (j + 1/2, i + 1/2); a patch of h x w at scale 1 is
as large, so that at a whole place, upright, it is copied pixel by pixel. `align_corners` is False everywhere.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.patch.transforms import Draws
from robustgen.purify.base import straight_through
from robustgen.purify.jpeg import Jpeg
from robustgen.rng import ExampleRng
from robustgen.threat import per_row

__all__ = ["blurred", "homography", "lit", "paste", "random_centres", "through_jpeg"]

_SNAP = 1e-4  # coverage this near to 0 or 1 is rounding
_ROUNDING = 1e-5  # of an interpolation between values in [0, 1]


def random_centres(place: Tensor, size: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """(B, 2) float32 (x, y): the middle of a patch of (h, w) pixels at a whole place in images of (H, W).

    Args:
        place: (B, 2) uniform in [0, 1).
        size, shape: of patch and images.
    """
    (h, w), (height, width) = size, shape
    top = (place[:, 0] * (height - h + 1)).floor()
    left = (place[:, 1] * (width - w + 1)).floor()
    return torch.stack([left + w / 2, top + h / 2], 1)


def lit(patch: Tensor, draws: Draws, rng: ExampleRng | None = None, step: int = 0) -> Tensor:
    """Contrast about grey, brightness, noise; within [0, 1].

    Args:
        patch: (C, h, w), or (B, C, h, w) where each image has its own.
        draws: one for each image.
        rng, step: where the noise comes from; None for no noise.

    Returns:
        (B, C, h, w).
    """
    shown = 0.5 + per_row(draws.contrast, patch.new_zeros(1, 1, 1, 1)) * (patch - 0.5)
    shown = shown + draws.brightness[:, None, None, None]
    if rng is not None and bool((draws.noise > 0).any()):
        shown = shown + draws.noise[:, None, None, None] * rng.normal(
            shown.shape[1:], "patch noise", step, patch.device
        )
    return _clipped(shown)


def paste(x: Tensor, patch: Tensor, mask: Tensor, centres: Tensor, draws: Draws) -> Tensor:
    """Images with the patch in them.

    Args:
        x: (B, C, H, W) in [0, 1].
        patch: (B, C, h, w) in [0, 1], as `lit` makes it.
        mask: (1, h, w) in [0, 1], 1 where the patch is.
        centres: (B, 2) (x, y) of its middle, in pixels of the image.
        draws: angle, scale, corners, blur and quality are used.

    Returns:
        (B, C, H, W) in [0, 1]; without JPEG equal to x where the patch is not. Differentiable in `patch`; warped with
        bilinear interpolation, the mask in the same way.
    """
    grid = _grid(x, patch.shape[2:], centres, draws)
    cover = F.grid_sample(mask.to(x).expand(len(x), 1, *mask.shape[1:]), grid, align_corners=False)
    cover = torch.where(cover < _SNAP, 0.0, torch.where(cover > 1 - _SNAP, 1.0, cover))
    layer = F.grid_sample(patch, grid, padding_mode="border", align_corners=False)
    if bool((draws.blur > 0).any()):
        layer = blurred(layer * cover, draws.blur) / blurred(cover, draws.blur).clamp(min=_SNAP)
    return through_jpeg(_clipped(x * (1 - cover) + layer * cover), draws.quality)


def _clipped(x: Tensor) -> Tensor:
    """x in [0, 1]. The gradient passes at 0 and 1 themselves, or a pixel that is black or white would stay so.

    That of `torch.clamp` does so in older releases of torch, and is 0 there in newer ones (seen in 2.14).
    """
    inside, clipped = (x > -_ROUNDING) & (x < 1 + _ROUNDING), x.detach().clamp(0, 1)
    return torch.where(inside, x + (clipped - x.detach()), clipped)


def through_jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Images (B, C, H, W) compressed as JPEG, each at its quality (B,), 0 for not at all; gradient straight through."""
    if not bool(quality.any()):
        return x
    out = x.detach().clone()
    for value in quality.unique().tolist():
        if value:
            rows = quality == value
            out[rows] = Jpeg(quality=value).compress(out[rows])
    return straight_through(x, out)


def homography(corners: Tensor) -> Tensor:
    """(B, 3, 3) the projective map of the square [-1, 1]^2 whose corners move by (B, 4, 2); lower right entry 1.

    Source: the four-point form of Hartley & Zisserman, Multiple View Geometry, section 4.1: eight linear equations.
    """
    u = corners.new_tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).expand_as(corners)
    v = u + corners
    zero, one = torch.zeros_like(u[..., :1]), torch.ones_like(u[..., :1])
    across = torch.cat([u, one, zero, zero, zero, -v[..., :1] * u], 2)
    down = torch.cat([zero, zero, zero, u, one, -v[..., 1:] * u], 2)
    solution = torch.linalg.solve(torch.cat([across, down], 1).double(), torch.cat([v[..., 0], v[..., 1]], 1).double())
    return torch.cat([solution, torch.ones_like(solution[:, :1])], 1).reshape(-1, 3, 3).to(corners)


def _grid(x: Tensor, size: tuple[int, ...], centres: Tensor, draws: Draws) -> Tensor:
    """(B, H, W, 2): for each pixel of the images the point of the patch, in [-1, 1]^2 where it is on it."""
    height, width = x.shape[2:]
    columns = (torch.arange(width, device=x.device) + 0.5) - centres[:, :1]
    rows = (torch.arange(height, device=x.device) + 0.5) - centres[:, 1:]
    angle = draws.angle * (math.pi / 180)
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    h, w = (0.5 * side * draws.scale[:, None, None] for side in size)
    u = (cosine * columns[:, None, :] - sine * rows[:, :, None]) / w
    v = (sine * columns[:, None, :] + cosine * rows[:, :, None]) / h
    if bool((draws.corners != 0).any()):
        points = torch.stack([u, v, torch.ones_like(u)], 3)
        inverse = torch.linalg.inv(homography(draws.corners))
        u, v, scale = torch.einsum("bij,bhwj->bhwi", inverse, points).unbind(3)
        u, v = u / scale, v / scale
    return torch.stack([u, v], 3)


def blurred(z: Tensor, sigma: Tensor) -> Tensor:
    """z (B, C, H, W) under a Gaussian of sigma (B,) pixels each, cut off at three of the largest; edges repeated."""
    reach = max(1, math.ceil(3 * float(sigma.max())))
    offsets = torch.arange(-reach, reach + 1, device=z.device, dtype=z.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]).square())
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(z.shape[1], 0)[:, None]
    flat = F.pad(z, (reach, reach, reach, reach), mode="replicate")
    flat = flat.reshape(1, -1, *flat.shape[2:])
    flat = F.conv2d(flat, weights[:, :, :, None], groups=flat.shape[1])
    return F.conv2d(flat, weights[:, :, None, :], groups=flat.shape[1]).reshape(z.shape)
