"""Success by label and target: what a run with a goal reports beside its accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from robustgen.example import ExampleRecord
from robustgen.statistics import Estimate, proportion

__all__ = ["TargetSummary", "merge_targets", "summarise_targets"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSummary:
    """How often which target was reached, over the examples classified correctly.

    Attributes:
        labels: the labels that occur, ascending: the rows of the matrices.
        attacked: one row a label, one column a class: how many examples of that label were attacked towards it.
        reached: the same, how many of them ended as that class, by the judge.
        skipped: examples whose label is the target; they count nowhere, nor in the run's accuracies.
        success: share of all attacked (example, target) pairs that were reached, with its 95 % Wilson interval; null
            where nothing was attacked. Pairs of one example are not independent, which the interval does not know.
    """

    labels: tuple[int, ...]
    attacked: tuple[tuple[int, ...], ...]
    reached: tuple[tuple[int, ...], ...]
    skipped: int
    success: Estimate | None

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> TargetSummary:
        """The inverse of `dataclasses.asdict`."""
        success = table["success"]
        return cls(
            labels=tuple(table["labels"]), attacked=tuple(map(tuple, table["attacked"])),
            reached=tuple(map(tuple, table["reached"])), skipped=table["skipped"],
            success=None if success is None else Estimate(**success),
        )  # fmt: skip

    def rate(self, row: int, target: int) -> float | None:
        """Share reached in one cell of the matrix; None where nothing was attacked."""
        attacked = self.attacked[row][target]
        return self.reached[row][target] / attacked if attacked else None


def summarise_targets(examples: Sequence[ExampleRecord], classes: int) -> TargetSummary | None:
    """The matrices, from nothing but the examples; None where the run has no goal."""
    if all(e.target is None for e in examples):
        return None
    pairs = [(e.label, e.target, e.broken_by is not None) for e in examples if e.broken_by != "clean" and not e.skipped]
    return _summary(pairs, {e.label for e in examples}, classes, sum(e.skipped for e in examples))


def merge_targets(parts: Sequence[TargetSummary]) -> TargetSummary:
    """One matrix of the runs towards each class, which hold the same examples."""
    labels, classes = parts[0].labels, len(parts[0].attacked[0])

    def added(name: str) -> tuple[tuple[int, ...], ...]:
        tables = [getattr(part, name) for part in parts]
        return tuple(tuple(sum(t[row][k] for t in tables) for k in range(classes)) for row in range(len(labels)))

    attacked, reached = added("attacked"), added("reached")
    return TargetSummary(
        labels=labels, attacked=attacked, reached=reached, skipped=sum(part.skipped for part in parts),
        success=_share(sum(map(sum, reached)), sum(map(sum, attacked))),
    )  # fmt: skip


def _summary(
    pairs: Sequence[tuple[int, int | None, bool]], labels: Iterable[int], classes: int, skipped: int
) -> TargetSummary:
    rows = sorted(labels)
    attacked, reached = ([[0] * classes for _ in rows] for _ in range(2))
    place = {label: row for row, label in enumerate(rows)}
    for label, target, success in pairs:
        assert target is not None  # every example of a run with a goal has one
        attacked[place[label]][target] += 1
        reached[place[label]][target] += success
    return TargetSummary(
        labels=tuple(rows), attacked=tuple(map(tuple, attacked)), reached=tuple(map(tuple, reached)), skipped=skipped,
        success=_share(sum(success for _, _, success in pairs), len(pairs)),
    )  # fmt: skip


def _share(count: int, total: int) -> Estimate | None:
    return proportion(count, total) if total else None
