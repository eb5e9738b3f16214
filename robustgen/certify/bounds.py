"""What a count of votes proves: bounds for a probability, and the radius that follows from one.

Source: Cohen et al. 2019, arXiv:1902.02918, theorem 1 and section 3.2 (L2, normal noise); Yang et al. 2020,
arXiv:2002.08118 (L1, uniform and Laplace noise). All in float64.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from robustgen.errors import SpecError

__all__ = [
    "NOISES", "check_alpha", "least_samples", "lower_bound", "probability_for", "radius_for", "upper_bound",
]  # fmt: skip

NOISES = ("normal", "uniform", "laplace")
Counts = int | npt.NDArray[np.int64]


def lower_bound(k: Counts, n: Counts, alpha: float) -> npt.NDArray[np.float64]:
    """Clopper and Pearson's one-sided lower bound of a probability: the alpha quantile of Beta(k, n - k + 1).

    For a number n that was fixed before: looking several times, or adding samples after a look, voids it.

    Args:
        k: successes.
        n: draws.
        alpha: probability in (0, 1) that the bound is wrong.
    """
    from scipy.stats import beta  # scipy.stats takes half a second to import

    check_alpha(alpha)
    successes, draws = np.asarray(k), np.asarray(n)
    bound = beta.ppf(alpha, np.maximum(successes, 1), draws - successes + 1)
    return np.where(successes == 0, 0.0, bound)


def upper_bound(k: Counts, n: Counts, alpha: float) -> npt.NDArray[np.float64]:
    """The upper bound that belongs to `lower_bound`; 1 for k = n."""
    return 1 - lower_bound(np.asarray(n) - np.asarray(k), n, alpha)


def radius_for(p: npt.ArrayLike, sigma: float, noise: str = "normal") -> npt.NDArray[np.float64]:
    """The radius within which a class of probability at least p stays the most likely one; 0 for p <= 1/2.

    Args:
        p: lower bound of the probability of the class under noise.
        sigma: the noise, in pixels of [0, 1]: standard deviation for normal, lambda of U[-lambda, lambda] for uniform,
            scale for laplace.
        noise: "normal" certifies in L2, R = sigma Phi^-1(p); "uniform" in L1, lambda (2 p - 1); "laplace" in L1,
            -lambda ln(2 (1 - p)).

    Raises:
        SpecError: another noise.
    """
    from scipy.stats import norm

    p = np.asarray(p, dtype=np.float64)
    held = np.clip(p, 0.5, None)
    if noise == "normal":
        radius = sigma * norm.ppf(held)
    elif noise == "uniform":
        radius = sigma * (2 * held - 1)
    elif noise == "laplace":
        with np.errstate(divide="ignore"):
            radius = -sigma * np.log(2 * (1 - held))
    else:
        raise SpecError(f"noise must be one of {', '.join(NOISES)}, got '{noise}'.")
    return np.where(p > 0.5, np.maximum(radius, 0.0), 0.0)


def probability_for(radius: float, sigma: float, noise: str = "normal") -> float:
    """The probability that a class must exceed for this radius: the inverse of `radius_for`; 1/2 for radius 0.

    Raises:
        SpecError: another noise, or a radius that no probability gives.
    """
    from scipy.stats import norm

    if noise == "normal":
        return float(norm.cdf(radius / sigma))
    if noise == "laplace":
        return 1 - math.exp(-radius / sigma) / 2
    if noise == "uniform" and radius < sigma:
        return (1 + radius / sigma) / 2
    if noise == "uniform":
        raise SpecError(f"uniform noise of lambda = {sigma:g} certifies no radius of {radius:g} or more.")
    raise SpecError(f"noise must be one of {', '.join(NOISES)}, got '{noise}'.")


def least_samples(radius: float, sigma: float, alpha: float, noise: str = "normal") -> int:
    """How many draws, all of them right, `lower_bound` needs to certify a radius: the least n with p^n <= alpha."""
    check_alpha(alpha)
    return max(1, math.ceil(math.log(alpha) / math.log(probability_for(radius, sigma, noise))))


def check_alpha(alpha: float) -> None:
    """Refuse an alpha that is no probability of an error.

    Raises:
        SpecError: it is not in (0, 1).
    """
    if not 0 < alpha < 1:
        raise SpecError(f"alpha must be in (0, 1), the probability of a false certificate, got {alpha:g}.")
