"""When to look at the votes, how many of them certify which radius, and when going on is not worth it.

For each radius a threshold p_j must be exceeded by the probability of the class. At fixed looks its count is compared
with boundaries b_j(i) that a count of probability p_j ever reaches with probability at most alpha (`boundaries.py`),
and b_j <= b_{j+1}. If the true probability p is too small for radius j, let j' be the least radius for which it is: to
certify j the count must reach b_j, hence b_{j'}, at some look; the probability of that is at most alpha. So **whatever
the reason to stop**, a false certificate has probability at most alpha.

The reason here is a price: going on from n draws to a later look is worth the radii that it may add; once no later look
promises `price` radii a draw, the example is left. A bad forecast costs certificates, never their validity.

Source: see `boundaries.py`; the stop for futility is non-binding, as group-sequential trials have it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from robustgen.certify.boundaries import boundaries
from robustgen.certify.bounds import check_alpha, lower_bound, probability_for, radius_for
from robustgen.certify.noise import GridNoise
from robustgen.errors import SpecError, unknown_name

__all__ = ["PROFILES", "Design", "check_design", "make_design", "threshold_for"]

METHODS = ("fixed", "anytime")
# profile -> price in radii a draw, share of alpha for looks before the last; set on three logs of Cohen et al. 2019
PROFILES = {"exact": (1.0e-6, 0.5), "fast": (5.5e-6, 0.97)}
_FIRST, _GROWTH = 60, 1.1
_PRIOR = (0.5, 0.15)  # of the forecast: many examples are right nearly always
_BETWEEN = 8  # radii that may be certified between two of the table


@dataclass(frozen=True)
class Design:
    """Looks and boundaries.

    Attributes:
        alpha: probability of a false certificate.
        looks: n_1 < ... < n_m.
        radii: rising, that can be certified; empty for one look, where the bound itself gives the radius.
        required: (radii, looks) least counts.
        valued: (radii,) bool: those of the table, which going on is worth its price for.
        price: radii of the table a draw must promise.
    """

    alpha: float
    looks: tuple[int, ...]
    radii: tuple[float, ...] = ()
    required: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 1), dtype=np.int64))
    valued: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    price: float = 0.0

    def reached(self, k: int, look: int) -> int:
        """How many of the radii a count certifies at a look."""
        return int((k >= self.required[:, look]).sum())

    def radius(self, k: int, reached: int, noise: GridNoise, pixels: int) -> float | None:
        """What is certified in the end, None for nothing.

        Args:
            k: right ones at the last look.
            reached: the most that a look certified.
            noise: whose slack and approximation are taken off where there is one look only; radii have them in.
            pixels: of the image.
        """
        if self.radii:
            return self.radii[reached - 1] if reached else None
        bound = float(lower_bound(k, self.looks[0], self.alpha)) - noise.approximation(pixels)
        if bound <= 0.5:
            return None
        return max(0.0, float(radius_for(bound, noise.sigma, noise.kind)) - noise.slack(pixels))

    def decided(self, k: int, look: int, reached: int) -> bool:
        """Whether to stop after a look with k right ones, the first `reached` radii being certified."""
        if look == len(self.looks) - 1 or not self.valued[reached:].any():
            return True
        return self.promise(k, look, reached) < self.price

    def promise(self, k: int, look: int, reached: int) -> float:
        """The most radii of the table a draw that a later look may add, by a beta-binomial forecast (normal tail)."""
        from scipy.special import ndtr

        n, later = self.looks[look], np.array(self.looks[look + 1 :])
        a, b, more = k + _PRIOR[0], n - k + _PRIOR[1], later - n
        mean = a / (a + b)
        spread = np.sqrt(more * mean * (1 - mean) * (a + b + more) / (a + b + 1)) + 1e-9
        needed = self.required[reached:, look + 1 :][self.valued[reached:]]
        chance = np.where(needed <= later, ndtr(-(needed - 0.5 - k - more * mean) / spread), 0.0)
        return float((chance.sum(0) / more).max())


def make_design(
    method: str, *, radii: Sequence[float], noise: GridNoise, pixels: int, samples: int, alpha: float,
    profile: str = "exact",
) -> Design:  # fmt: skip
    """The design of a method.

    Args:
        method: "fixed" for one look at `samples`, as Cohen et al. have it; "anytime" for looks that grow by a tenth.
        radii: those of the table.
        noise, pixels: what is added, to images of how many pixels.
        samples: the last look.
        alpha: probability of a false certificate, of one example.
        profile: of "anytime": "exact" or "fast".

    Raises:
        SpecError: as `check_design`.
    """
    check_design(method, samples=samples, alpha=alpha, profile=profile)
    if method == "fixed":
        return Design(alpha, (samples,))
    price, early = PROFILES[profile]
    looks = [min(_FIRST, samples)]
    while looks[-1] < samples:
        looks.append(min(samples, math.ceil(looks[-1] * _GROWTH)))
    grid, thresholds = _grid(radii, noise, pixels)
    table = np.array([boundaries(p, tuple(looks), alpha, early) for p in thresholds], dtype=np.int64)
    return Design(
        alpha, tuple(looks), tuple(grid), np.maximum.accumulate(table, 0),
        np.array([any(math.isclose(r, one) for one in (0.0, *radii)) for r in grid]), price,
    )  # fmt: skip


def check_design(method: str, *, samples: int, alpha: float, profile: str) -> None:
    """Refuse what leads to no design, without the seconds that one takes.

    Raises:
        SpecError: no such method or profile, or so few samples that no radius can be certified.
    """
    check_alpha(alpha)
    least = math.ceil(math.log(alpha) / math.log(0.5))
    if samples < least:
        raise SpecError(f"--samples must be >= {least}, or nothing is certified at alpha = {alpha:g}, got {samples}.")
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if method == "anytime" and profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)


def threshold_for(radius: float, noise: GridNoise, pixels: int) -> float:
    """What the share of votes must exceed for a radius, slack and approximation included; 1 or more: nothing can."""
    reach = radius + noise.slack(pixels) if radius else 0.0
    if noise.kind == "uniform" and reach >= noise.sigma:
        return 1.0
    return probability_for(reach, noise.sigma, noise.kind) + noise.approximation(pixels)


def _grid(radii: Sequence[float], noise: GridNoise, pixels: int) -> tuple[list[float], list[float]]:
    """Radii of the table with some in between, and what each asks of p, slack and approximation included."""
    table = sorted({0.0, *radii})
    table.append(table[-1] + (table[-1] - table[-2] if len(table) > 1 else noise.sigma))
    between = {a + (b - a) * k / _BETWEEN for a, b in pairwise(table) for k in range(_BETWEEN)}
    grid, thresholds = [], []
    for radius in sorted(between):
        p = threshold_for(radius, noise, pixels)
        if p >= 1 - 1e-9:
            break
        grid.append(radius)
        thresholds.append(p)
    return grid, thresholds
