"""Exact boundaries of a sequential test of a probability: how many right ones are needed at each look.

For a threshold p0 and looks n_1 < ... < n_m, boundaries b_i are such that counts of independent draws of probability p0
ever reach one of them with probability at most alpha: computed from the binomial distribution by recursion over the
looks, correlations included, where a union bound would spend alpha a look at a time. For p < p0 it is rarer still.

Source: Armitage, McPherson & Rowe 1969 (the recursion, DOI 10.2307/2343787); Pocock 1977 (one nominal level for all
early looks, DOI 10.1093/biomet/64.2.191).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["boundaries", "crossing_probability"]

_TAIL = 1e-14  # of a distribution that is left out, counted as crossed
_HALVINGS = 24
_DIRECT = 200  # longer convolutions go by FFT

Step = tuple[int, npt.NDArray[np.float64]]


def crossing_probability(p: float, looks: tuple[int, ...], required: npt.NDArray[np.int64]) -> float:
    """Probability that a binomial count of probability p reaches `required` at one of the looks."""
    return _crossing(_steps(p, looks), required)


def _crossing(steps: list[Step], required: npt.NDArray[np.int64]) -> float:
    from scipy.signal import fftconvolve

    low, alive, crossed = 0, np.ones(1), 0.0
    for (first, probabilities), need in zip(steps, required.tolist(), strict=True):
        small = min(len(alive), len(probabilities)) < _DIRECT
        mixed = np.convolve(alive, probabilities) if small else fftconvolve(alive, probabilities)
        alive, low = np.maximum(mixed, 0.0), low + first
        cut = min(max(need - low, 0), len(alive))
        crossed += float(alive[cut:].sum())
        alive = alive[:cut]
        left = int(np.searchsorted(np.cumsum(alive), _TAIL))
        crossed += float(alive[:left].sum())
        alive, low = alive[left:], low + left
        if not len(alive):
            break
    return crossed


def _steps(p: float, looks: tuple[int, ...]) -> list[Step]:
    """For the draws between two looks: the least count that matters, and probabilities from there on."""
    from scipy.stats import binom

    steps = []
    for draws in np.diff([0, *looks]).tolist():
        low, high = int(binom.ppf(_TAIL, draws, p)), int(binom.isf(_TAIL, draws, p)) + 1
        counts = np.arange(max(low - 1, 0), min(high, draws) + 1)
        steps.append((int(counts[0]), binom.pmf(counts, draws, p)))
    return steps


@lru_cache(maxsize=1024)
def boundaries(p: float, looks: tuple[int, ...], alpha: float, early: float) -> tuple[int, ...]:
    """The least count at each look, n_i + 1 where none serves.

    Args:
        p: the threshold, in (0, 1).
        looks: rising.
        alpha: probability of ever crossing at p, at most.
        early: share of it that the looks before the last may spend, all at one nominal level; the last takes the rest.
    """
    from scipy.stats import binom

    steps = _steps(p, looks)
    n = np.array(looks)

    def needed(nominal: float) -> npt.NDArray[np.int64]:
        return np.asarray(binom.isf(nominal, n, p)).astype(np.int64) + 1

    required = np.append(needed(alpha)[:-1], n[-1] + 1)
    if len(looks) > 1:

        def spent_early(level: float) -> float:
            return _crossing(steps, np.append(needed(level)[:-1], n[-1] + 1))

        required = np.append(needed(_largest(spent_early, alpha * early, alpha))[:-1], n[-1] + 1)

    def spent(level: float) -> float:
        return _crossing(steps, np.append(required[:-1], needed(level)[-1]))

    required[-1] = needed(_largest(spent, alpha, alpha))[-1]
    return tuple(int(value) for value in np.minimum(required, n + 1))


def _largest(spent: Callable[[float], float], allowed: float, high: float) -> float:
    """The largest level up to `high` that spends no more than what is allowed, by halving its logarithm."""
    if spent(high) <= allowed:
        return high
    low, top = math.log(high) - 20, math.log(high)
    for _ in range(_HALVINGS):
        middle = (low + top) / 2
        low, top = (middle, top) if spent(math.exp(middle)) <= allowed else (low, middle)
    return math.exp(low)
