"""Non-leaking augmentation: the image is changed, and the network is told how.

Sampling passes no parameters, which means "unchanged", so that what the network learns of changed images helps without
appearing in what it makes.

Source: Karras et al. 2022, arXiv:2206.00364, appendix F.2, table 6.
Differs: one bilinear resampling with reflected borders, where the paper pads and filters for each step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augmentation"]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Flips, scaling, rotation, anisotropy and translation, each with its probability.

    Args:
        probability: in [0, 1], of each change by itself; the mirror image is always a coin's throw.
    """

    probability: float

    def __call__(self, x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change images (B, C, H, W); returns them and their parameters (B, 9), 0 where nothing was changed.

        The parameters: mirrored, upside down, ln2 of the scale, cos and sin of the rotation (less those of none), two
        of the anisotropy, two of the translation in image sizes.
        """
        n = len(x)

        def chosen() -> Tensor:
            return (torch.rand(n, generator=rng) < self.probability).float()

        def normal() -> Tensor:
            return torch.randn(n, generator=rng)

        mirror = (torch.rand(n, generator=rng) < 0.5).float()
        upside = chosen() * (torch.rand(n, generator=rng) < 0.5)
        scale = chosen() * 0.2 * normal()
        turn = chosen() * (torch.rand(n, generator=rng) * 2 - 1) * math.pi
        stretch = chosen() * 0.2 * normal()
        axis = (torch.rand(n, generator=rng) * 2 - 1) * math.pi * (torch.rand(n, generator=rng) < 0.5)
        shifted = chosen()
        right, down = shifted * 0.125 * normal(), shifted * 0.125 * normal()
        parameters = torch.stack(
            [
                mirror,
                upside,
                scale,
                turn.cos() - 1,
                turn.sin(),
                stretch * axis.cos(),
                stretch * axis.sin(),
                right,
                down,
            ],
            1,
        )
        return self._warp(x, mirror, upside, scale, turn, stretch, axis, right, down), parameters

    @staticmethod
    def _warp(x: Tensor, *change: Tensor) -> Tensor:
        """Where each pixel of the result is to be read: the inverse of the changes, in pixels around the centre."""
        mirror, upside, scale, turn, stretch, axis, right, down = change
        height, width = x.shape[2:]
        flip = _diagonal(1 - 2 * mirror, 1 - 2 * upside)
        shrink = _diagonal(torch.exp2(-scale), torch.exp2(-scale))
        aniso = _rotation(axis) @ _diagonal(torch.exp2(-stretch), torch.exp2(stretch)) @ _rotation(-axis)
        matrix = flip @ shrink @ _rotation(-turn) @ aniso
        ys = torch.arange(height, dtype=x.dtype) - (height - 1) / 2
        xs = torch.arange(width, dtype=x.dtype) - (width - 1) / 2
        grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(1, -1, 2)
        shift = torch.stack([right * width, down * height], 1)[:, None, :]
        source = (grid - shift) @ matrix.transpose(1, 2)
        place = source.reshape(len(x), height, width, 2) * 2 / torch.tensor([width, height], dtype=x.dtype)
        return F.grid_sample(x, place, mode="bilinear", padding_mode="reflection", align_corners=False)


def _diagonal(first: Tensor, second: Tensor) -> Tensor:
    """(B, 2, 2)."""
    return torch.diag_embed(torch.stack([first, second], 1))


def _rotation(angle: Tensor) -> Tensor:
    """(B, 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2)
