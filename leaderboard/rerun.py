"""`robustgen reproduce board`: run our own entries again, and compare every verdict with the one on the board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from robustgen import durable
from robustgen.certify.spec import CertificationSpec
from robustgen.errors import SpecError
from robustgen.example import ExampleRecord
from robustgen.leaderboard.certified import CertifiedCard, certification_request
from robustgen.leaderboard.entries import (
    ENTRIES,
    Entry,
    EntryCard,
    command_in,
    load_entries,
    request_of,
)
from robustgen.progress import Progress
from robustgen.spec import RunSpec, expand_ids
from robustgen.tables import markdown_table

__all__ = [
    "BoardTable", "Rerun", "commands", "compared", "compared_certificates", "load_table", "markdown", "measured",
    "run_row", "write",
]  # fmt: skip

Card = EntryCard | CertifiedCard
_CLOSE = 1e-9  # relative; what the rounding of another machine may do to a radius
_SHOWN = 12  # ids named in one line


@dataclass(frozen=True, slots=True)
class BoardTable:
    """The entries to run again, in their folder; those that need somebody's code are left out."""

    name: str
    rows: tuple[Card, ...]
    folder: Path = ENTRIES
    left_out: tuple[str, ...] = ()
    gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """An entry beside its new run.

    Attributes:
        name: of the entry.
        n: examples.
        stored, found: how many are robust (of certificates: certified right) on the board, and now.
        only_stored, only_found: ids robust only on the board, only now.
        clean: ids whose clean image is right in just one of the two.
        radii: ids whose certified radius differs.
        spec: the fields that differ, one line each; empty for the same identity.
        queries: forwards and backwards, on the board and now.
        seconds: of the new run.
    """

    name: str
    n: int
    stored: int
    found: int
    only_stored: tuple[int, ...]
    only_found: tuple[int, ...]
    clean: tuple[int, ...]
    spec: tuple[str, ...]
    queries: tuple[int, int]
    seconds: float
    radii: tuple[int, ...] = ()

    @property
    def verdict(self) -> str:
        """What differs, in one line; else "equal verdicts"."""
        parts = [*(f"spec: {line[:80]}" for line in self.spec)]
        named = {"robust only on the board": self.only_stored, "robust only now": self.only_found,
                 "clean verdict differs": self.clean, "radius differs": self.radii}  # fmt: skip
        for what, ids in named.items():
            if ids:
                more = f" and {len(ids) - _SHOWN} others" if len(ids) > _SHOWN else ""
                parts.append(f"{what}: {', '.join(map(str, ids[:_SHOWN]))}{more}")
        return "; ".join(parts) or "equal verdicts"


def load_table(scale: str) -> BoardTable:
    """The entries that come with robustgen ("laptop"), or those of a folder of cards.

    Raises:
        SpecError, ArtifactError: no such folder, or a card is none; no entry at all.
    """
    if scale == "paper":
        raise SpecError("board has one scale: every entry as its card says; drop --scale, or name a folder of cards.")
    entries: tuple[Entry, ...] = load_entries(None if scale == "laptop" else Path(scale))
    if not entries:
        raise SpecError(f"{scale} holds no cards; make one with robustgen leaderboard add RUN --entries {scale}.")
    code = {entry.card.name for entry in entries if entry.card.origin is not None and entry.card.origin.code}
    return BoardTable(
        "board", tuple(entry.card for entry in entries if entry.card.name not in code),
        folder=ENTRIES if scale == "laptop" else Path(scale), left_out=tuple(sorted(code)),
    )  # fmt: skip


def commands(table: BoardTable, out: Path) -> str:
    """The rows as commands that can be typed one by one."""
    return "\n".join(
        f"{command_in(card, table.folder)} --out {out / 'board' / card.name}  # {_seconds(card):.0f} s"
        for card in table.rows
    )


def _seconds(card: Card) -> float:
    return (card.seconds or 0.0) if isinstance(card, CertifiedCard) else card.cost.seconds


def run_row(
    table: BoardTable, card: Card, out: Path, *, data_dir: Path | None, device: str, deadline: float | None,  # noqa: ARG001 -- as every experiment
    progress: Progress,
) -> Rerun:  # fmt: skip
    """Run one entry as its card says, or go on with that, and compare."""
    from robustgen.jobs import run_job
    from robustgen.prepare import prepare
    from robustgen.request import Request
    from robustgen.runs import read_examples

    folder = out / "board" / card.name
    if isinstance(card, CertifiedCard):
        return _certified_row(table, card, folder, data_dir=data_dir, device=device, progress=progress)
    asked = Request(**request_of(card.spec, card.origin, table.folder), data_dir=data_dir)
    job = prepare(asked, device=device, out=folder)
    record = run_job(job, progress)
    queries = record.forwards + record.backwards
    return compared(card, job.spec, read_examples(folder), queries=queries, seconds=record.seconds)


def _certified_row(
    table: BoardTable, card: CertifiedCard, folder: Path, *, data_dir: Path | None, device: str, progress: Progress
) -> Rerun:
    from robustgen.certify.record import load_certification
    from robustgen.certify.request import CertificationRequest, certify_request

    asked = CertificationRequest(**certification_request(card.spec, card.origin, table.folder), data_dir=data_dir)
    certify_request(asked, out=folder, batch_size=1000, device=device, progress=progress)
    held = load_certification(folder)
    found = {one.id: one.radius if one.predict == one.label else None for one in held.certificates}
    seconds = sum(one.seconds or 0.0 for one in held.certificates)
    return compared_certificates(card, held.spec, found, queries=held.record["samples"], seconds=seconds)


def compared_certificates(
    card: CertifiedCard, spec: CertificationSpec, found: Mapping[int, float | None], *, queries: int, seconds: float
) -> Rerun:
    """A card beside the radii (id -> radius, None where the label is not certified) of a new certification."""
    stored = dict(zip(expand_ids(card.spec.ids), card.radii, strict=True))
    right, right_now = ({id_ for id_, radius in held.items() if radius is not None} for held in (stored, found))
    apart = [
        id_ for id_ in right & right_now
        if abs((stored[id_] or 0.0) - (found[id_] or 0.0)) > _CLOSE * (1 + (stored[id_] or 0.0))
    ]  # fmt: skip
    return Rerun(
        name=card.name, n=card.n, stored=len(right), found=len(right_now), only_stored=tuple(sorted(right - right_now)),
        only_found=tuple(sorted(right_now - right)), clean=(), radii=tuple(sorted(apart)),
        spec=_differences(card, spec), queries=(card.samples, queries), seconds=seconds,
    )  # fmt: skip


def _differences(card: Card, spec: Any) -> tuple[str, ...]:
    """Fields of the specification that differ; a classifier from a file may be called otherwise."""
    mine: Any = card.spec
    return tuple(mine.differences(spec if card.origin is None else replace(spec, classifier=mine.classifier)))


def compared(
    card: EntryCard, spec: RunSpec, examples: Sequence[ExampleRecord], *, queries: int, seconds: float
) -> Rerun:
    """A card beside the examples of a new run."""
    right, robust = set(expand_ids(card.right)), set(expand_ids(card.robust))
    right_now = {e.id for e in examples if e.clean_prediction == e.label}
    robust_now = {e.id for e in examples if e.robust}
    return Rerun(
        name=card.name, n=card.n, stored=len(robust), found=len(robust_now),
        only_stored=tuple(sorted(robust - robust_now)), only_found=tuple(sorted(robust_now - robust)),
        clean=tuple(sorted(right ^ right_now)), spec=_differences(card, spec),
        queries=(card.cost.forwards + card.cost.backwards, queries), seconds=seconds,
    )  # fmt: skip


def measured(table: BoardTable, found: Sequence[tuple[Card, Rerun]]) -> dict[str, Any]:
    """Everything that is shown, as plain values."""
    done = {card.name: {**asdict(one), "verdict": one.verdict} for card, one in found}
    rows = [done.get(card.name, {"name": card.name, "verdict": "not run yet"}) for card in table.rows]
    equal = sum(row["verdict"] == "equal verdicts" for row in rows)
    left = list(table.left_out)
    return {"name": table.name, "equal": equal, "entries": len(rows), "rows": rows, "left_out": left}


def markdown(held: dict[str, Any]) -> str:
    """A line an entry, with what differs, and the count."""
    lines = []
    for row in held["rows"]:
        cells = ["", "", "", ""]
        if "stored" in row:
            board, now = row["queries"]
            cells = [f"{row['stored']} of {row['n']}", f"{row['found']} of {row['n']}", f"{board:,} / {now:,}",
                     f"{row['seconds']:.1f}"]  # fmt: skip
        lines.append([row["name"], *cells, row["verdict"]])
    header = ("entry", "robust, board", "robust, now", "queries, board / now", "seconds", "verdict")
    told = f"{held['equal']} of {held['entries']} entries come out with equal verdicts."
    left = held["left_out"]
    told += f" Not run, as they need somebody's code: {', '.join(left)}." if left else ""
    return f"{markdown_table(header, lines)}\n\n{told}"


def write(held: dict[str, Any], found: Sequence[tuple[Card, Rerun]], out: Path) -> None:  # noqa: ARG001 -- as above
    """OUT/board.json and OUT/board.md."""
    out.mkdir(parents=True, exist_ok=True)
    durable.write_json(out / "board.json", held)
    durable.replace(out / "board.md", (markdown(held) + "\n").encode())
