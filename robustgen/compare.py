"""Runs side by side over the same examples: intervals, exact paired tests, ties, and who changed side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robustgen.errors import SpecError
from robustgen.record import RunRecord
from robustgen.runs import read_examples, refuse_distances, refuse_goal
from robustgen.statistics import Estimate, mcnemar

__all__ = ["Comparison", "Row", "compare_runs"]

_FIXED = ("data", "data_sha256", "ids", "threat")  # what must be equal; ids and hash are those of the same images
_LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run beside the best of them.

    Attributes:
        run, classifier, plan: which one.
        clean, robust: accuracies with 95 % intervals.
        only_here, only_best: ids robust in this run and not in the best, and the other way round.
        p_value: of the exact McNemar test against the best, two-sided, corrected for the number of runs (Holm 1979);
            1 for the best itself.
        tie: the test does not tell the run from the best at the 5 % level.
    """

    run: str
    classifier: str
    plan: str
    clean: Estimate
    robust: Estimate
    only_here: tuple[int, ...]
    only_best: tuple[int, ...]
    p_value: float
    tie: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rows in falling order of robust accuracy; the first is the best."""

    data: str
    threat: str
    n: int
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Compare finished runs over the same examples of the same data under the same threat model.

    Raises:
        SpecError: fewer than two runs, or runs of different things; the field that differs is named.
        RecordError: a folder holds no finished run.
    """
    if len(runs) < 2:
        raise SpecError(f"compare needs two runs or more, got {len(runs)}; type robustgen compare RUN RUN.")
    records = [RunRecord.load(run) for run in runs]
    for run, record in zip(runs, records, strict=True):
        refuse_distances(run, record, "compare")
        refuse_goal(run, record, "compare")
    first = records[0].spec
    for run, record in zip(runs[1:], records[1:], strict=True):
        for field in _FIXED:
            if record.spec[field] != first[field]:
                raise SpecError(
                    f"{run} cannot be compared with {runs[0]}: {field} is {_short(record.spec[field])} there and "
                    f"{_short(first[field])} here; compare runs over the same examples under the same threat model."
                )
    robust = [{e.id for e in read_examples(run) if e.robust} for run in runs]
    best = max(range(len(runs)), key=lambda k: (len(robust[k]), -k))
    raw = [mcnemar(len(mine - robust[best]), len(robust[best] - mine)) for mine in robust]
    others = [k for k in range(len(runs)) if k != best]
    p_values = dict(zip(others, holm([raw[k] for k in others]), strict=True)) | {best: 1.0}
    rows = [
        Row(
            run=str(run), classifier=record.spec["classifier"], plan=record.spec["plan"],
            clean=record.clean_accuracy, robust=record.robust_accuracy,
            only_here=tuple(sorted(robust[k] - robust[best])), only_best=tuple(sorted(robust[best] - robust[k])),
            p_value=p_values[k], tie=k == best or p_values[k] > _LEVEL,
        )
        for k, (run, record) in enumerate(zip(runs, records, strict=True))
    ]  # fmt: skip
    rows.sort(key=lambda row: (-row.robust.value, row.run != str(runs[best])))
    return Comparison(data=first["data"], threat=first["threat"], n=records[0].n, rows=tuple(rows))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method (Scand. J. Statist. 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        corrected[k] = largest
    return corrected


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
