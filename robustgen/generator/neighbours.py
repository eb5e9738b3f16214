"""What nearest neighbours tell of a generator: precision, recall, density and coverage.

Distances are computed in float64, where |x|^2 + |y|^2 - 2 x.y is exact for whole numbers such as pixels, and good to
1e-7 of the largest length otherwise; in float32 it would lose the very distances that matter, the small ones. One block
of distances is held at a time, so that 60,000 x 60,000 pairs need no more memory than 1,000 x 1,000.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.distances import Measured
from robustgen.statistics import Estimate, proportion

__all__ = ["NeighbourStatistics", "blocks_of_distances", "nearest", "neighbour_statistics", "radii"]

_BLOCK = 2**24  # numbers in a block of distances: 128 MiB
_ROUNDING = 1e-13  # of a squared distance, as a share of the squared lengths of both points


def blocks_of_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared L2 distances between all rows of x (N, d) and y (M, d), some rows of x at a time.

    Yields:
        Which rows of x, and their distances (rows, M) float64, >= 0, which may be changed in place.

    Raises:
        SpecError: the widths differ.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise SpecError(f"distances need shapes (N, d) and (M, d), got {tuple(x.shape)} and {tuple(y.shape)}.")
    y = y.double()
    lengths = y.square().sum(1)
    step = max(1, _BLOCK // max(1, len(y)))
    for first in range(0, len(x), step):
        rows = slice(first, min(first + step, len(x)))
        part = x[rows].double()
        block = torch.addmm(lengths[None, :], part, y.T, alpha=-2).add_(part.square().sum(1, keepdim=True))
        yield rows, block.clamp_(min=0)


def nearest(x: Tensor, y: Tensor, k: int, *, own: bool = False) -> tuple[Tensor, Tensor]:
    """The k nearest rows of y (M, d) to each row of x (N, d).

    Args:
        x, y: points, any dtype.
        k: how many.
        own: y is x, and a point is not its own neighbour (a copy of it is).

    Returns:
        L2 distances (N, k) float64, ascending, and their rows in y (N, k) int64.

    Raises:
        SpecError: fewer than k neighbours exist.
    """
    if not 1 <= k <= len(y) - own:
        raise SpecError(f"k = {k} neighbours need {k + own} points or more, got {len(y)}.")
    found = []
    for rows, block in blocks_of_distances(x, y):
        if own:
            place = torch.arange(rows.start, rows.stop, device=block.device)
            block[place - rows.start, place] = math.inf
        found.append(block.topk(k, largest=False))
    return torch.cat([values for values, _ in found]).sqrt(), torch.cat([places for _, places in found])


def radii(x: Tensor, k: int) -> Tensor:
    """Distance of each row of x (N, d) to its k-th nearest other row: (N,) float64."""
    return nearest(x, x, k, own=True)[0][:, -1]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourStatistics:
    """How two sets of the same size lie among one another; each with a 95 % interval or a standard error.

    Both hold for given balls: a ball holds many points of the other set, and is itself drawn at random, so that the
    true uncertainty is larger. Compare with what two halves of the real data give.

    Attributes:
        precision: share of fakes inside a ball of the real ones: fidelity.
        recall: share of reals inside a ball of the fakes: diversity.
        density: mean number of real balls that hold a fake, over k; 1 is expected, more is possible.
        coverage: share of reals whose ball holds a fake; 1 - 2^-k is expected for equal sets.
    """

    precision: Estimate
    recall: Estimate
    density: Measured
    coverage: Estimate


def neighbour_statistics(real: Tensor, fake: Tensor, *, k_balls: int = 3, k_density: int = 5) -> NeighbourStatistics:
    """Precision, recall, density and coverage of features fake (M, d) among features real (N, d).

    A point on the rim of a ball is inside it.

    Args:
        real, fake: features.
        k_balls: which neighbour gives the radius for precision and recall.
        k_density: the same for density and coverage.

    Raises:
        SpecError: a set has too few points for k.

    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. (1) and (2), k = 3; Naeem et al. 2020, arXiv:2002.09797,
        eqs. (3) and (4), k = 5.
    """
    least = max(k_balls, k_density) + 1
    if min(len(real), len(fake)) < least:
        raise SpecError(f"neighbours need {least} points a set or more, got {len(real)} real and {len(fake)} fake.")
    near = nearest(real, real, max(k_balls, k_density), own=True)[0]
    real_balls, density_balls = near[:, k_balls - 1].square(), near[:, k_density - 1].square()
    fake_balls = radii(fake, k_balls).square()
    lengths = real.double().square().sum(1)
    in_real, held, recalled, covered = [], [], torch.zeros_like(lengths).bool(), torch.zeros_like(lengths).bool()
    for rows, block in blocks_of_distances(fake, real):
        block -= _ROUNDING * (lengths[None, :] + fake[rows].double().square().sum(1, keepdim=True))
        in_real.append((block <= real_balls).any(1))
        inside = block <= density_balls
        held.append(inside.sum(1))
        covered |= inside.any(0)
        recalled |= (block <= fake_balls[rows, None]).any(0)
    counts = torch.cat(held).double() / k_density
    return NeighbourStatistics(
        precision=_share(torch.cat(in_real)),
        recall=_share(recalled),
        density=Measured(float(counts.mean()), float(counts.std()) / math.sqrt(len(counts))),
        coverage=_share(covered),
    )


def _share(hits: Tensor) -> Estimate:
    return proportion(int(hits.sum()), len(hits))
