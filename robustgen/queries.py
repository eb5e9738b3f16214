"""What a run of attacks that see answers only says: how many queries a success took, from nothing but its rows.

A query is an image that an attack sends, the clean one too where it sends it. The clean pass, which tells what is
attacked at all, is none: a misclassified image takes 0 queries, and is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from robustgen.example import ExampleRecord
from robustgen.statistics import exceedance

__all__ = ["QueriesSummary", "QueryPoint", "QuerySummary", "queries_to_success", "success_curve", "summarise_queries"]

_POINTS = 200  # of a curve, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryPoint:
    """Share of the attacked examples broken within so many queries, with the band that holds the whole curve."""

    queries: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuerySummary:
    """One attack over the examples that it attacked.

    Attributes:
        attacked: how many.
        success: share of them that it broke.
        median, mean: queries of its successes, the median the smallest number that half of them kept to; null where
            there is no success. Those that never succeeded are not in them.
        most: the largest number of queries sent for one example, broken or not.
        curve: success against queries, with the simultaneous 95 % band of Dvoretzky, Kiefer and Wolfowitz; empty where
            nothing was attacked.
    """

    attacked: int
    success: float
    median: int | None
    mean: float | None
    most: int
    curve: tuple[QueryPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueriesSummary:
    """All attacks of a run by their labels, and how many examples were misclassified without any query."""

    misclassified: int
    attacks: dict[str, QuerySummary]

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> QueriesSummary:
        """The inverse of `dataclasses.asdict`."""
        attacks = {
            name: QuerySummary(**{**row, "curve": tuple(QueryPoint(**point) for point in row["curve"])})
            for name, row in table["attacks"].items()
        }
        return cls(misclassified=table["misclassified"], attacks=attacks)


def summarise_queries(examples: Sequence[ExampleRecord], labels: Iterable[str]) -> QueriesSummary:
    """Each attack's figures from nothing but the examples of a run."""
    return QueriesSummary(
        misclassified=sum(e.broken_by == "clean" for e in examples),
        attacks={label: _summary(examples, label) for label in labels},
    )


def queries_to_success(examples: Sequence[ExampleRecord], label: str) -> list[float]:
    """Queries after which an attack broke each example that it attacked; infinite where it did not."""
    attacked = [e for e in examples if label in e.cost]
    return [float(e.cost[label][0]) if _broke(e, label) else math.inf for e in attacked]


def _broke(e: ExampleRecord, label: str) -> bool:
    return e.broken_by == label if e.broken_by_all is None else label in e.broken_by_all


def _summary(examples: Sequence[ExampleRecord], label: str) -> QuerySummary:
    took = queries_to_success(examples, label)
    won = sorted(int(q) for q in took if math.isfinite(q))
    return QuerySummary(
        attacked=len(took),
        success=len(won) / len(took) if took else 0.0,
        median=won[math.ceil(len(won) / 2) - 1] if won else None,
        mean=sum(won) / len(won) if won else None,
        most=max((e.cost[label][0] for e in examples if label in e.cost), default=0),
        curve=success_curve(took) if took else (),
    )


def success_curve(took: Sequence[float]) -> tuple[QueryPoint, ...]:
    """Success against queries: 0, then at most so many of the numbers that a success took, the largest always.

    Args:
        took: of every attacked example, at least one; infinite where it was not broken.

    Source: the empirical distribution function; the band is Massart's (1990, Annals of Probability 18).
    """
    curve = exceedance(took, _POINTS)
    return tuple(
        QueryPoint(queries=int(q), value=1 - left.value, low=1 - left.high, high=1 - left.low) for q, left in curve
    )
