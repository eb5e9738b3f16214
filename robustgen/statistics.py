"""Intervals for the figures that get reported, by scipy."""

from __future__ import annotations

from dataclasses import dataclass

from robustgen.errors import SpecError

__all__ = ["Estimate", "proportion"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A fraction of 1 with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"


def proportion(count: int, total: int) -> Estimate:
    """`count` of `total` with Wilson's 95 % interval.

    Source: Wilson 1927; scipy.stats.binomtest.
    """
    if not 0 <= count <= total or total < 1:
        raise SpecError(f"a proportion needs 0 <= count <= total and total >= 1, got {count} of {total}.")
    from scipy.stats import binomtest  # scipy.stats takes half a second to import

    interval = binomtest(count, total).proportion_ci(0.95, method="wilson")
    return Estimate(count / total, float(interval.low), float(interval.high))
