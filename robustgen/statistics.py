"""Intervals for the figures that get reported, by scipy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustgen.errors import SpecError

__all__ = [
    "Estimate",
    "dkw_margin",
    "examples_needed",
    "exceedance",
    "majority_of",
    "mcnemar",
    "mean_share",
    "proportion",
    "sampled_tail",
    "share_interval",
    "worst_of",
]


_Z95 = 1.959963984540054  # of the normal distribution, two-sided


@dataclass(frozen=True, slots=True)
class Estimate:
    """A fraction of 1 with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"


def proportion(count: int, total: int, *, confidence: float = 0.95) -> Estimate:
    """`count` of `total` with Wilson's interval, of 95 % unless another confidence is asked for.

    Source: Wilson 1927; scipy.stats.binomtest.
    """
    if not 0 <= count <= total or total < 1:
        raise SpecError(f"a proportion needs 0 <= count <= total and total >= 1, got {count} of {total}.")
    from scipy.stats import binomtest  # scipy.stats takes half a second to import

    interval = binomtest(count, total).proportion_ci(confidence, method="wilson")
    return Estimate(count / total, float(interval.low), float(interval.high))


def dkw_margin(total: int) -> float:
    """Half the width of the 95 % band around a whole empirical distribution function of so many values.

    Source: Massart 1990, "The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality", Annals of Probability 18:
    sqrt(ln(2 / 0.05) / (2 n)).
    """
    if total < 1:
        raise SpecError(f"a band needs one value or more, got {total}.")
    return math.sqrt(math.log(2 / 0.05) / (2 * total))


def exceedance(values: Sequence[float], points: int) -> Iterator[tuple[float, Estimate]]:
    """Places, and the share of the values (at least one, >= 0, infinite ones too) that is larger; with its band.

    The first place is 0; then come at most so many of the values, the largest finite one always. The band holds for the
    whole curve at once with 95 %: `dkw_margin` to both sides.
    """
    n, margin = len(values), dkw_margin(len(values))
    ordered = sorted(values)
    places = sorted({value for value in ordered if 0 < value < math.inf})
    stride = max(1, math.ceil(len(places) / points))
    passed = 0
    for place in [0.0, *reversed(places[::-1][::stride])]:
        while passed < n and ordered[passed] <= place:
            passed += 1
        share = (n - passed) / n
        yield place, Estimate(share, max(0.0, share - margin), min(1.0, share + margin))


def mean_share(shares: Sequence[float]) -> Estimate:
    """The mean of numbers in [0, 1], one an example, with Wilson's interval for a proportion of that value.

    The variance of such numbers is at most p (1 - p), that of zeros and ones, so the interval is not too narrow.
    """
    n = len(shares)
    if not n or min(shares) < 0 or max(shares) > 1:
        raise SpecError("a mean of shares needs one or more numbers in [0, 1].")
    return share_interval(sum(shares) / n, n)


def share_interval(share: float, n: int) -> Estimate:
    """A share of n examples, known as a number only, with Wilson's interval; that of `proportion` where it is k / n."""
    if not 0 <= share <= 1 or n < 1:
        raise SpecError(f"a share lies in [0, 1] of one example or more, got {share:g} of {n}.")
    z2 = _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(max(share * (1 - share), 0.0) / n + z2 / (4 * n * n))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def worst_of(right: int, draws: int, n: int) -> float:
    """Probability that n answers drawn from `draws`, of which `right` are right, are all right: C(k, n) / C(N, n).

    The unbiased estimate of c^n where each answer is right with probability c.
    """
    return math.comb(right, n) / math.comb(draws, n)


def majority_of(right: int, draws: int, m: int) -> float:
    """Probability that more than half of m answers drawn from `draws`, of which `right` are right, are right."""
    if m > draws:
        raise SpecError(f"a majority of {m} needs at least as many draws, got {draws}.")
    ways = sum(math.comb(right, j) * math.comb(draws - right, m - j) for j in range(m // 2 + 1, m + 1))
    return ways / math.comb(draws, m)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value of the exact McNemar test.

    Args:
        only_a: examples on which only the first of two classifiers is right.
        only_b: those on which only the second is.

    Source: McNemar 1947, in its exact binomial form; 1 where the two never differ.
    """
    if only_a < 0 or only_b < 0:
        raise SpecError(f"counts of differing examples must be >= 0, got {only_a} and {only_b}.")
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def sampled_tail(hits: int, drawn: int, marked: int, total: int) -> float:
    """Probability of so many marked ones or more among `drawn` that are drawn without replacement.

    The exact test of "at most `marked` of `total` are marked" from a random sample, as it is one-sided.

    Args:
        hits: marked ones in the sample.
        drawn: size of the sample.
        marked: how many there are in all.
        total: examples.

    Source: hypergeometric distribution; scipy.stats.hypergeom.
    """
    if not 0 <= hits <= drawn <= total or not 0 <= marked <= total:
        raise SpecError(f"{hits} hits in {drawn} draws from {total} examples, {marked} of them marked, cannot be.")
    from scipy.stats import hypergeom

    return float(hypergeom.sf(hits - 1, total, marked, drawn))


def examples_needed(difference: float, differing: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """How many examples two classifiers must share for the paired test to tell them apart.

    Args:
        difference: of their accuracies, a fraction of 1.
        differing: the share of examples on which just one of them is right, at least `difference`.
        power: the probability of telling them apart.
        level: of the two-sided test.

    Source: Connor 1987, "Sample size for testing differences in proportions for the paired-sample design",
    Biometrics 43, eq. (3).
    """
    if not 0 < difference <= differing <= 1:
        raise SpecError(
            f"a difference of {difference:g} needs 0 < difference <= differing <= 1, got differing {differing:g}."
        )
    if not 0 < power < 1 or not 0 < level < 1:
        raise SpecError(f"power and level must lie between 0 and 1, got {power:g} and {level:g}.")
    from scipy.stats import norm

    z_level, z_power = float(norm.ppf(1 - level / 2)), float(norm.ppf(power))
    root = z_level * math.sqrt(differing) + z_power * math.sqrt(differing - difference**2)
    return math.ceil((root / difference) ** 2)
