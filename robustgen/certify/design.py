"""When to look at the votes, how much error each look may spend, and when going on is not worth it.

Looks are fixed beforehand, at n_1 < n_2 < ... < n_m, and look i has a Clopper-Pearson bound at level alpha_i of its
own, with sum alpha_i = alpha. By the union bound all bounds hold at once with probability 1 - alpha, so the largest of
them holds whenever one stops, **for whatever reason**. The reason here is a price: going on from n draws to a later
look is worth the radii that it may add; once no later look promises `price` radii a draw, the example is left. A bad
forecast costs certificates, never their validity.

Source: Bonferroni; the idea of spending alpha is that of Lan & DeMets 1983 (DOI 10.1093/biomet/70.3.659), of a
non-binding stop for futility that of group-sequential trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from robustgen.certify.bounds import check_alpha, lower_bound, probability_for
from robustgen.errors import SpecError, unknown_name

__all__ = ["PROFILES", "Design", "make_design"]

PROFILES = {"exact": 1.5e-6, "fast": 1e-5}  # price: radii that a draw must promise
_FIRST, _GROWTH, _LAST_SHARE = 60, 1.2, 0.5
_PRIOR = (0.5, 0.15)  # of the forecast: many examples are right nearly always


@dataclass(frozen=True)
class Design:
    """Looks, levels and radii.

    Attributes:
        looks: n_1 < ... < n_m.
        levels: alpha_i of each.
        thresholds: rising probabilities that radii ask for, each to be exceeded.
        price: radii a draw must promise; 0 to go on to the last look.
    """

    looks: tuple[int, ...]
    levels: tuple[float, ...]
    thresholds: tuple[float, ...]
    price: float = 0.0

    @cached_property
    def required(self) -> npt.NDArray[np.int64]:
        """(thresholds, looks): the least count whose bound exceeds the threshold; n + 1 where none does."""
        table = np.empty((len(self.thresholds), len(self.looks)), dtype=np.int64)
        for i, (n, alpha) in enumerate(zip(self.looks, self.levels, strict=True)):
            for j, p in enumerate(self.thresholds):
                low, high = 0, n + 1  # the bound rises with the count
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (low, middle) if float(lower_bound(middle, n, alpha)) > p else (middle, high)
                table[j, i] = high
        return table

    def bound(self, counts: Sequence[int]) -> float:
        """The lower bound after the looks so far, with the count at each: the largest of theirs."""
        n = np.array(self.looks[: len(counts)])
        bounds = [float(lower_bound(k, int(m), a)) for k, m, a in zip(counts, n, self.levels, strict=False)]
        return max(bounds, default=0.0)

    def decided(self, k: int, look: int, reached: int) -> bool:
        """Whether to stop after a look.

        Args:
            k: right ones at this look.
            look: which, from 0.
            reached: how many thresholds the bounds so far exceed.
        """
        if look == len(self.looks) - 1 or reached == len(self.thresholds):
            return True
        return self.price > 0 and self.promise(k, look, reached) < self.price

    def promise(self, k: int, look: int, reached: int) -> float:
        """The most radii a draw that a later look is expected to add, by a beta-binomial forecast (normal tail)."""
        n = self.looks[look]
        a, b = k + _PRIOR[0], n - k + _PRIOR[1]
        more = np.array(self.looks[look + 1 :]) - n
        mean = a / (a + b)
        spread = np.sqrt(more * mean * (1 - mean) * (a + b + more) / (a + b + 1)) + 1e-9
        needed = self.required[reached:, look + 1 :]
        z = (needed - 0.5 - k - more * mean) / spread
        gains = np.where(needed <= np.array(self.looks[look + 1 :]), _tail(z), 0.0).sum(0)
        return float((gains / more).max())


def _tail(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from scipy.special import ndtr

    upper: npt.NDArray[np.float64] = ndtr(-z)
    return upper


def make_design(
    method: str, *, radii: Sequence[float], sigma: float, samples: int, alpha: float, profile: str = "exact",
    noise: str = "normal",
) -> Design:  # fmt: skip
    """The design of a method.

    Args:
        method: "fixed" for one look at `samples`, as Cohen et al. have it; "anytime" for looks that grow by a fifth.
        radii: those of the table; radii between them are certified as they come.
        sigma, noise: see `bounds.radius_for`.
        samples: the last look.
        alpha: probability of a false certificate, of one example.
        profile: of "anytime": "exact" or "fast".

    Raises:
        SpecError: no such method or profile, or so few samples that no radius can be certified.
    """
    check_alpha(alpha)
    least = math.ceil(math.log(alpha) / math.log(0.5))
    if samples < least:
        raise SpecError(f"--samples must be >= {least}, or nothing is certified at alpha = {alpha:g}, got {samples}.")
    thresholds = tuple(sorted({probability_for(r, sigma, noise) for r in radii if _possible(r, sigma, noise)} | {0.5}))
    if method == "fixed":
        return Design((samples,), (alpha,), thresholds)
    if method != "anytime":
        raise unknown_name("method", method, ("fixed", "anytime"))
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    looks = [min(_FIRST, samples)]
    while looks[-1] < samples:
        looks.append(min(samples, math.ceil(looks[-1] * _GROWTH)))
    early = len(looks) - 1
    levels = [alpha * (1 - _LAST_SHARE) / early] * early + [alpha * _LAST_SHARE] if early else [alpha]
    return Design(tuple(looks), tuple(levels), thresholds, PROFILES[profile])


def _possible(radius: float, sigma: float, noise: str) -> bool:
    return noise != "uniform" or radius < sigma
