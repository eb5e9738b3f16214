"""Who misleads whom: attacks on every classifier of a list, judged on every other, as a table and a heat map.

OUT/A-on-B/           the run that `robustgen eval B --surrogates A` leaves: B judges, on what it classifies right
OUT/others-on-B/      the same with all others at once, the mean of their logits, where there are three or more
OUT/white-box-on-B/   the same attacks on B itself
OUT/transfer.json     the table, from these runs alone
OUT/transfer.png      the heat map

Each is a whole run folder: the same command goes on where it stopped, and `robustgen verify` takes each by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from robustgen.attacks.plans import Plan
from robustgen.attacks.transfer import transfer
from robustgen.durable import disk_errors, write_json
from robustgen.errors import SpecError
from robustgen.example import ExampleRecord
from robustgen.health import transfer_wins
from robustgen.jobs import run_job
from robustgen.prepare import Job, prepare, slug
from robustgen.progress import Progress
from robustgen.request import Request
from robustgen.runs import read_examples
from robustgen.statistics import Estimate, proportion
from robustgen.surrogates import check_apart, split_names
from robustgen.threat import ThreatModel

__all__ = ["OTHERS", "WHITE_BOX", "TransferCell", "TransferMatrix", "transfer_matrix"]

OTHERS, WHITE_BOX = "others", "white-box"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCell:
    """One surrogate, or all others at once, and one target.

    Attributes:
        surrogate, target: names; `surrogate` is "others" for all but the target, "white-box" for the target itself.
        attacked: examples that the target classifies right.
        success: share of them that an attack broke; None where there is none to attack.
        run: folder of the run, relative to the matrix.
    """

    surrogate: str
    target: str
    attacked: int
    success: Estimate | None
    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferMatrix:
    """All cells; `protocol` is that of the white-box runs, `flags` of a target names what was raised."""

    threat: str
    data: str
    protocol: str
    n: int
    names: tuple[str, ...]
    cells: tuple[TransferCell, ...]
    flags: dict[str, tuple[str, ...]]

    @property
    def rows(self) -> list[str]:
        """Surrogates, in the order of the table."""
        return list(dict.fromkeys(cell.surrogate for cell in self.cells))

    def at(self, surrogate: str, target: str) -> TransferCell | None:
        """The cell, where there is one."""
        return next((c for c in self.cells if (c.surrogate, c.target) == (surrogate, target)), None)

    def to_json(self) -> dict[str, Any]:
        """What transfer.json holds."""
        return {"schema": 1, **asdict(self)}


def transfer_matrix(
    names: str, request: Request, *, out: Path, device: str = "auto", batch_size: int | None = None, progress: Progress,
) -> TransferMatrix:  # fmt: skip
    """Run every pair, and what each target falls to by itself; transfer.json is written last.

    Args:
        names: classifiers with commas, two or more.
        request: attacks, threat, data, examples and seed of every run; what it leaves open is that of the first.
        out: the folder.
        device, batch_size: as in `robustgen.evaluate`.
        progress: told how the attacks go.

    Raises:
        SpecError, ArtifactError, RecordError: fewer than two names, two with the same weights, a pair that does not
            suit, a folder of other runs.
    """
    listed = split_names(names, "transfer matrix")
    if len(listed) < 2:
        raise SpecError(f"transfer matrix needs two classifiers or more, got {listed[0]}; type A,B,C.")
    folders = [slug(name) for name in listed]
    if len(set(folders)) < len(folders):
        raise SpecError(f"transfer matrix names folders after its classifiers, and two end alike: {names}.")
    asked = _requests(listed, request)

    def ready(row: str, target: str) -> Job:
        folder = out / _folder(row, target)
        return prepare(asked[row, target], device=device, batch_size=batch_size, out=folder)

    alone = [ready(WHITE_BOX, target) for target in listed]  # all classifiers are loaded before the first is attacked
    check_apart([job.classifier for job in alone])
    examples: dict[tuple[str, str], list[ExampleRecord]] = {}
    for job, (row, target) in zip_longest(alone, asked):
        progress.note(f"{row} on {target}:")
        record = run_job(job or ready(row, target), progress)
        examples[row, target] = read_examples(out / _folder(row, target))
    found = TransferMatrix(
        threat=record.spec["threat"], data=record.spec["data"], n=record.n, names=tuple(listed),
        protocol=alone[0].spec.protocol, cells=tuple(_cell(*pair, rows) for pair, rows in examples.items()),
        flags={target: _flags(target, examples) for target in listed},
    )  # fmt: skip
    with disk_errors(out):
        write_json(out / "transfer.json", found.to_json())
    return found


def _requests(names: Sequence[str], request: Request) -> dict[tuple[str, str], Request]:
    """Row and column -> request; first the targets by themselves."""
    if request.threat is None or request.data is None:
        first = prepare(replace(request, classifier=names[0], plan=_on_itself(request))).spec
        request = replace(request, threat=request.threat or first.threat, data=request.data or first.data)
    asked = {(WHITE_BOX, name): replace(request, classifier=name, plan=_on_itself(request)) for name in names}
    for target in names:
        others = [name for name in names if name != target]
        rows = {name: name for name in others} | ({OTHERS: ",".join(others)} if len(others) > 1 else {})
        asked |= {(row, target): replace(request, classifier=target, surrogates=text) for row, text in rows.items()}
    return asked


def _on_itself(request: Request) -> str | Plan | None:
    """The plan of a target by itself: that of the request, or the attacks of `transfer`."""
    if request.attacks is not None or request.plan not in (None, "transfer"):
        return request.plan
    plan: Plan = transfer(ThreatModel("linf", 0.1))
    return replace(plan, name="transfer-white-box")


def _folder(row: str, target: str) -> str:
    return f"{slug(row)}-on-{slug(target)}"


def _cell(row: str, target: str, examples: Sequence[ExampleRecord]) -> TransferCell:
    right = [e for e in examples if e.clean_prediction == e.label and not e.skipped]
    success = proportion(sum(not e.robust for e in right), len(right)) if right else None
    return TransferCell(
        surrogate=row, target=target, attacked=len(right), success=success, run=_folder(row, target)
    )  # fmt: skip


def _flags(target: str, examples: Mapping[tuple[str, str], Sequence[ExampleRecord]]) -> tuple[str, ...]:
    white = examples[WHITE_BOX, target]
    moved = [rows for (row, name), rows in examples.items() if name == target and row != WHITE_BOX]
    return ("transfer-beats-white-box",) if any(transfer_wins(white, rows) for rows in moved) else ()
