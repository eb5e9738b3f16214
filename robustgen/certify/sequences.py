"""Evidence that may be looked at after every draw: a martingale instead of a fixed number of samples.

With n draws, k of them right, and the prior Beta(a, b) fixed beforehand,

    M_n(p) = B(k + a, n - k + b) / B(a, b) / (p^k (1 - p)^(n - k))

is a martingale of mean 1 if p is the true probability. By Ville's inequality it ever reaches 1 / alpha with probability
at most alpha. So "p is not the true probability" may be said whenever M_n(p) >= 1 / alpha, at any time, after any
number of looks, by any rule for stopping. Restricting the prior to (p0, 1] makes a martingale whose mean is at most 1
for every p <= p0: the one-sided form, which is what a certificate needs.

Source: Robbins 1970, "Statistical methods related to the law of the iterated logarithm", section 3 (beta mixture);
Ville 1939. KT prior a = b = 1/2.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["PRIOR", "evidence_above", "evidence_below", "sequential_lower_bound"]

PRIOR = (0.5, 0.5)
Counts = int | npt.NDArray[np.int64]


def evidence_above(k: Counts, n: Counts, p0: float, prior: tuple[float, float] = PRIOR) -> npt.NDArray[np.float64]:
    """ln M+_n: log evidence that the probability exceeds p0; say so once it is >= ln(1 / alpha).

    Args:
        k: right ones.
        n: draws.
        p0: in (0, 1).
        prior: fixed beforehand.
    """
    from scipy.special import betaln
    from scipy.stats import beta

    (a, b), right, wrong = prior, np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64) - np.asarray(k)
    plain = betaln(right + a, wrong + b) - betaln(a, b) - right * math.log(p0) - wrong * math.log1p(-p0)
    log_evidence: npt.NDArray[np.float64] = (
        plain + beta.logsf(p0, right + a, wrong + b) - beta.logsf(p0, a, b)
    )  # the prior cut off at p0
    return log_evidence


def evidence_below(k: Counts, n: Counts, p0: float, prior: tuple[float, float] = PRIOR) -> npt.NDArray[np.float64]:
    """The mirror image: log evidence that the probability lies below p0."""
    return evidence_above(np.asarray(n) - np.asarray(k), n, 1 - p0, prior[::-1])


def sequential_lower_bound(k: int, n: int, alpha: float, prior: tuple[float, float] = PRIOR) -> float:
    """The largest p0 that `evidence_above` excludes after k of n, 0 for none; valid at any stopping time."""
    if k == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if evidence_above(k, n, middle, prior) >= math.log(1 / alpha):
            low = middle
        else:
            high = middle
    return low
