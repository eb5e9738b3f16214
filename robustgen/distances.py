"""What a run of minimum-norm attacks says: how far away adversarial images are, and the curve that follows.

The distance of an example is that of its nearest judged witness: an upper bound of the smallest one, so every curve
below is an upper bound of robust accuracy too. A misclassified image needs no perturbation: its distance is 0, and it
is counted apart from the examples that were attacked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from robustgen.example import ExampleRecord, counted
from robustgen.statistics import exceedance

__all__ = [
    "CurvePoint",
    "DistanceSummary",
    "NearestSummary",
    "accuracy_curve",
    "distance_summary",
    "nearest_of",
    "summarise_distances",
]

_POINTS = 200  # of a curve, at most; one that has more examples keeps every so many


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceSummary:
    """One attack over the examples that it attacked, which are those classified correctly.

    Attributes:
        success: share for which it found an adversarial image, at whatever distance.
        median, q25, q75: the smallest distance within which that share of them is broken, one not broken being
            infinitely far; null where that is infinite, or where nothing was attacked. Unit: pixels of [0, 1] in
            the run's norm, in l0 a number of pixels.
    """

    success: float
    median: float | None
    q25: float | None
    q75: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Share of all examples right at every distance up to `eps`, with the band that holds the whole curve."""

    eps: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestSummary:
    """The best of all attacks, example by example.

    Attributes:
        distance: as for one attack, of the nearest that any of them found.
        attacked, misclassified: examples classified correctly, and those at distance 0 without any attack.
        curve: robust accuracy against eps over all examples, misclassified ones included; with the simultaneous 95 %
            band of Dvoretzky, Kiefer and Wolfowitz.
    """

    distance: DistanceSummary
    attacked: int
    misclassified: int
    curve: tuple[CurvePoint, ...]

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> NearestSummary:
        """The inverse of `dataclasses.asdict`."""
        curve = tuple(CurvePoint(**point) for point in table["curve"])
        return cls(**{**table, "distance": DistanceSummary(**table["distance"]), "curve": curve})


def summarise_distances(
    examples: Sequence[ExampleRecord], labels: Iterable[str]
) -> tuple[dict[str, DistanceSummary], NearestSummary]:
    """Each attack's figures and those of the best of all, from nothing but the examples of a run without an eps."""
    examples = counted(examples)
    attacked = [e for e in examples if e.distances is not None]
    each = {label: distance_summary([(e.distances or {}).get(label, math.inf) for e in attacked]) for label in labels}
    nearest = NearestSummary(
        distance=distance_summary([nearest_of(e) for e in attacked]),
        attacked=len(attacked),
        misclassified=len(examples) - len(attacked),
        curve=accuracy_curve([nearest_of(e) for e in examples]),
    )
    return each, nearest


def nearest_of(example: ExampleRecord) -> float:
    """Distance of the nearest adversarial image found: 0 where it is misclassified, infinite where there is none."""
    return 0.0 if example.broken_by == "clean" else min((example.distances or {}).values(), default=math.inf)


def accuracy_curve(distances: Sequence[float]) -> tuple[CurvePoint, ...]:
    """Robust accuracy against eps: 0, then at most so many of the distances, the largest finite one always.

    Args:
        distances: of every example of a run, at least one; 0 for a misclassified one, infinite where none was found.

    Source: the empirical distribution function of the distances, turned around: at eps the share whose distance is
    larger. The band holds for all eps at once with 95 % (Massart 1990, Annals of Probability 18).
    """
    curve = exceedance(distances, _POINTS)
    return tuple(CurvePoint(eps=eps, value=share.value, low=share.low, high=share.high) for eps, share in curve)


def distance_summary(distances: Sequence[float]) -> DistanceSummary:
    """Success and quartiles of distances, one an example that was attacked, infinite without success."""
    ordered, n = sorted(distances), len(distances)

    def within(share: float) -> float | None:
        """The smallest distance that at least this share does not exceed."""
        reached = ordered[math.ceil(share * n) - 1] if n else math.inf
        return reached if math.isfinite(reached) else None

    success = sum(map(math.isfinite, ordered)) / n if n else 0.0
    return DistanceSummary(success=success, median=within(0.5), q25=within(0.25), q75=within(0.75))
