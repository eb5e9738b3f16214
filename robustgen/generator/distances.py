"""How far two sets of images lie apart: Fréchet distance, kernel distance and inception score, in float64.

All of them see features or probabilities, never images. Which network those come from decides what they mean: see
`robustgen.generator.features`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.rng import generator_for

__all__ = [
    "Measured",
    "Moments",
    "frechet_distance",
    "frechet_infinity",
    "frechet_of",
    "frechet_with_error",
    "inception_score",
    "kernel_distance",
    "moments",
]


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean (d,) and covariance (d, d), divided by n - 1, of n rows; float64."""

    mean: Tensor
    covariance: Tensor
    n: int


def moments(x: Tensor) -> Moments:
    """Mean and covariance of x (N, d).

    Raises:
        SpecError: fewer than two rows, not a matrix, or values that are not finite.
    """
    x = _checked(x)
    mean = x.mean(0)
    centred = x - mean
    return Moments(mean, centred.T @ centred / (len(x) - 1), len(x))


def frechet_of(a: Moments, b: Moments) -> float:
    """||m_a - m_b||^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric and
    has the eigenvalues of C_a C_b: no complex root appears, and singular covariances (N <= d) need no ridge.

    Source: Dowson & Landau 1982; Heusel et al. 2017, arXiv:1706.08500, eq. (6).
    Differs: the reference code takes the real part of scipy.linalg.sqrtm(C_a C_b), which is the same trace.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ b.covariance @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return float(distance)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of features a (N, d) and b (M, d).

    Biased upwards, by about const / N: compare only at the same N, or see `frechet_infinity`. Never below 0 but for
    rounding.

    Raises:
        SpecError: the widths differ, or one is no matrix of finite numbers with two rows or more.
    """
    _same_width(a, b)
    return frechet_of(moments(a), moments(b))


def frechet_with_error(a: Tensor, b: Tensor, *, groups: int = 20, seed: int = 0) -> Measured:
    """Fréchet distance with its standard error, by a jackknife that leaves out one random group of rows at a time.

    The two sets are independent, so their variances add: var = sum over both of (g - 1) / g sum_i (F_i - mean F)^2,
    where F_i lacks group i of one set. It costs 2 g distances, and moments by subtraction. The bias in 1 / N shifts all
    F_i alike and does not enter. Where the true distance is 0 the error is an overestimate (the distance is quadratic
    there); the error itself is known to about 1 / sqrt(2 (g - 1)) = 16 %.

    Args:
        a, b: (N, d) and (M, d) features.
        groups: g; at most half as many as there are rows.
        seed: of the division into groups, so that the order of the rows (often by class) does not matter.

    Source: Efron & Stein 1981; Shao & Wu 1989 for groups.
    """
    _same_width(a, b)
    whole = [moments(a), moments(b)]
    variance = 0.0
    for place, (x, mine, other) in enumerate(((a, whole[0], whole[1]), (b, whole[1], whole[0]))):
        g = min(groups, len(x) // 2)
        if g < 2:
            raise SpecError(f"the error of a Fréchet distance needs 4 rows a set or more, got {len(x)}.")
        order = torch.randperm(len(x), generator=generator_for(seed, "jackknife", place))
        left_out = [frechet_of(_without(mine, x[rows.to(x.device)].double()), other) for rows in order.tensor_split(g)]
        values = torch.tensor(left_out, dtype=torch.float64)
        variance += float((values - values.mean()).square().sum()) * (g - 1) / g
    return Measured(frechet_of(whole[0], whole[1]), math.sqrt(variance))


def _without(whole: Moments, x: Tensor) -> Moments:
    """The moments of what is left when the rows x (k, d) leave the set; exact, by Chan's formula for merged sets."""
    k, n = len(x), whole.n - len(x)
    mean = (whole.n * whole.mean - x.sum(0)) / n
    own = x - x.mean(0)
    gap = x.mean(0) - mean
    scatter = whole.covariance * (whole.n - 1) - own.T @ own - torch.outer(gap, gap) * (k * n / whole.n)
    return Moments(mean, scatter / (n - 1), n)


def frechet_infinity(a: Tensor, b: Tensor, *, points: int = 15, seed: int = 0) -> float | None:
    """Fréchet distance for endless sets, by a straight line through distances of growing subsets over 1 / N.

    Args:
        a, b: (N, d) and (N, d) features.
        points: subset sizes, evenly spaced from N / 10 (or 5 d, the larger) to N.
        seed: of the subsets.

    Returns:
        The line's value at 1 / N = 0, which may be negative; None where N < 10 d, too few for a line.

    Source: Chong & Forsyth 2020, arXiv:1911.07023, algorithm 1.
    Differs: subsets of both sets shrink, as both bias the distance; each size is the mean over as many disjoint subsets
        as there are, which lowers the noise; random rows, where the paper draws its images from a Sobol sequence.
    """
    _same_width(a, b)
    n, d = min(len(a), len(b)), a.shape[1]
    if n < max(10 * d, 40):
        return None
    rng = generator_for(seed, "frechet-infinity")
    sizes = torch.linspace(max(5 * d, n // 10), n, points, dtype=torch.float64).round()
    values = []
    for size in sizes.long().tolist():
        parts = [x[torch.randperm(len(x), generator=rng).to(x.device)].split(size) for x in (a, b)]
        distances = [frechet_distance(x, y) for x, y in zip(*parts, strict=False) if len(x) == len(y) == size]
        values.append(sum(distances) / len(distances))
    design = torch.stack([torch.ones_like(sizes), 1 / sizes], 1)
    line = torch.linalg.lstsq(design, torch.tensor(values, dtype=torch.float64)[:, None]).solution
    return float(line[0, 0])


def kernel_distance(a: Tensor, b: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> Measured:
    """Unbiased squared maximum mean discrepancy (MMD^2) with the kernel k(x, y) = (x . y / d + 1)^3.

    Unbiased at any N, so it may be negative. The standard error is the spread over subsets divided by the root of the
    number of subsets that are independent: at most N / size, as more of them share rows.

    Args:
        a, b: (N, d) and (M, d) features.
        subsets: how many random subsets to average over.
        size: rows a subset; at most half of the smaller set, so that there are two subsets to compare.
        seed: of the subsets.

    Source: Bińkowski et al. 2018, arXiv:1801.01401, eq. (4) and section 4 (there called KID, in Inception features).
    """
    _same_width(a, b)
    a, b = _checked(a), _checked(b)
    least = min(len(a), len(b))
    size = min(size, least // 2)
    if size < 2 or subsets < 2:
        raise SpecError(f"a kernel distance needs 4 rows a set and 2 subsets, got {least} rows and {subsets} subsets.")
    rng = generator_for(seed, "kernel-distance")
    values = []
    for _ in range(subsets):
        x, y = (z[torch.randperm(len(z), generator=rng)[:size].to(z.device)] for z in (a, b))
        values.append(_mmd(x, y))
    spread = torch.tensor(values, dtype=torch.float64)
    return Measured(float(spread.mean()), float(spread.std()) / math.sqrt(min(subsets, least // size)))


def _mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 of x (m, d) and y (m, d) float64: means over pairs of different rows within, all pairs across."""
    m, d = x.shape
    k_xx, k_yy, k_xy = ((p @ q.T / d + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = (k_xx.sum() - k_xx.trace() + k_yy.sum() - k_yy.trace()) / (m * (m - 1))
    return float(within - 2 * k_xy.mean())


def inception_score(probabilities: Tensor, *, splits: int = 10, seed: int = 0) -> Measured:
    """exp(mean KL(p(y|x) || p(y))) of a classifier's answers: from 1 (all alike) to K (sure, and all classes alike).

    Says nothing about a second set, and rewards what the classifier is sure of; name the classifier beside it.

    Args:
        probabilities: (N, K), rows that sum to 1.
        splits: random parts of the set whose scores are averaged.
        seed: of the parts: in files sorted by class, consecutive parts would each score 1.

    Returns:
        The mean over the parts; as error, the spread over the parts (not of the mean), as papers give it.

    Raises:
        SpecError: rows that are no probabilities, or fewer rows than parts.

    Source: Salimans et al. 2016, arXiv:1606.03498, section 4.
    """
    p = probabilities.double()
    if p.ndim != 2 or bool((p < 0).any()) or not bool(((p.sum(1) - 1).abs() < 1e-3).all()):
        raise SpecError(f"an inception score needs rows of probabilities (N, K), got shape {tuple(p.shape)}; softmax?")
    if not 2 <= splits <= len(p):
        raise SpecError(f"an inception score needs 2 <= splits <= {len(p)} rows, got {splits} splits.")
    order = torch.randperm(len(p), generator=generator_for(seed, "inception-score")).to(p.device)
    scores = []
    for part in p[order].tensor_split(splits):
        divergence = torch.special.xlogy(part, part) - torch.special.xlogy(part, part.mean(0, keepdim=True))
        scores.append(divergence.sum(1).mean().exp())
    values = torch.stack(scores)
    return Measured(float(values.mean()), float(values.std()))


def _same_width(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise SpecError(
            f"two sets of features need shapes (N, d) and (M, d), got {tuple(a.shape)} and {tuple(b.shape)}."
        )


def _checked(x: Tensor) -> Tensor:
    """x as float64, if it is a matrix of finite numbers with two rows or more."""
    if x.ndim != 2 or len(x) < 2:
        raise SpecError(f"features must have the shape (N, d) with N >= 2, got {tuple(x.shape)}.")
    x = x.double()
    if not bool(x.isfinite().all()):
        row = int((~x.isfinite()).any(1).nonzero()[0])
        raise SpecError(f"features must be finite numbers; row {row} is not.")
    return x
