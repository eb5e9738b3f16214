"""Orthonormal cosines (DCT-II) along an edge of an image: the basis in which images have few large coefficients."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["cosines", "from_frequencies"]


@lru_cache(maxsize=64)
def cosines(size: int) -> Tensor:
    """(size, size) float32 on the CPU: row k is the cosine of k half waves over the edge, of unit length.

    Source: Ahmed et al. 1974, "Discrete cosine transform", IEEE Transactions on Computers C-23: the DCT-II.
    """
    place, k = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)[:, None]
    rows = torch.cos(math.pi * (2 * place + 1) * k / (2 * size)) * math.sqrt(2 / size)
    rows[0] = 1 / math.sqrt(size)
    return rows.float()


def from_frequencies(coefficients: Tensor, height: int, width: int) -> Tensor:
    """Images (B, C, height, width) from the coefficients (B, C, h, w) of their lowest frequencies, the others 0."""
    down = cosines(height)[: coefficients.shape[2]].to(coefficients)
    across = cosines(width)[: coefficients.shape[3]].to(coefficients)
    return down.T @ coefficients @ across
