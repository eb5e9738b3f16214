"""Intervals: Wilson's formula in closed form, and published values."""

from __future__ import annotations

import math

import pytest

from robustgen.errors import SpecError
from robustgen.statistics import majority_of, mean_share, proportion, worst_of


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (737, 1000), (1, 3), (7371, 10000)])
def test_wilson_in_closed_form(count: int, total: int) -> None:
    """(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)."""
    z, p = 1.959963984540054, count / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total**2)) / (1 + z * z / total)
    estimate = proportion(count, total)
    assert math.isclose(max(0, centre - half), estimate.low, abs_tol=1e-12)
    assert math.isclose(min(1, centre + half), estimate.high, abs_tol=1e-12)


def test_the_board_leader_within_sampling_error() -> None:
    """73.71 % on 10,000 images is known to 0.86 points either way."""
    estimate = proportion(7371, 10_000)
    assert math.isclose(0.0086, (estimate.high - estimate.low) / 2, abs_tol=5e-5)
    assert str(estimate).startswith("73.71 % [72.84")


@pytest.mark.parametrize(("count", "total"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(count: int, total: int) -> None:
    """Not a proportion."""
    with pytest.raises(SpecError, match="a proportion needs"):
        proportion(count, total)


def test_shares_of_draws_are_unbiased() -> None:
    """Averaged over binomial counts they are c^n and the binomial tail, exactly."""
    draws, c = 21, 0.7
    weights = [math.comb(draws, k) * c**k * (1 - c) ** (draws - k) for k in range(draws + 1)]
    worst = sum(w * worst_of(k, draws, 10) for k, w in enumerate(weights))
    majority = sum(w * majority_of(k, draws, 11) for k, w in enumerate(weights))
    assert worst == pytest.approx(c**10)
    assert majority == pytest.approx(sum(math.comb(11, j) * c**j * (1 - c) ** (11 - j) for j in range(6, 12)))
    with pytest.raises(SpecError, match="at least as many draws"):
        majority_of(3, 5, 7)


def test_mean_of_shares_has_wilsons_interval() -> None:
    """For zeros and ones it is that of the proportion; in between it depends on the mean alone."""
    ours, theirs = mean_share([1.0] * 7 + [0.0] * 3), proportion(7, 10)
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high))
    assert mean_share([0.7] * 10).low == pytest.approx(ours.low)
    with pytest.raises(SpecError, match="numbers in"):
        mean_share([1.5])
