"""The wall of claims: what was claimed, what AutoAttack left, what is known to be left; and ours against verified."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from robustgen.leaderboard.boards import Board, board_names, make_board
from robustgen.leaderboard.entries import Entry
from robustgen.leaderboard.table import plain_markdown, points
from robustgen.tables import aligned, csv_table, latex_table, markdown_table

__all__ = ["Claim", "board_claims", "claims_of", "over_a_point", "show_claims"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim beside what was measured; fractions of 1.

    Attributes:
        data, threat, name, origin, shown: which entry.
        claimed: by its authors, or on the classifier's own card.
        measured: under AutoAttack, under corruptions, or verified by us.
        best_known: the lowest that any attack left, or None.
        overclaim: claimed minus measured.
        date: of the paper, or of the card.
    """

    data: str
    threat: str
    name: str
    shown: str
    origin: str
    claimed: float
    measured: float
    best_known: float | None
    overclaim: float
    date: str


def board_claims(board: Board) -> list[Claim]:
    """The claims of one board, the largest overclaim first; entries without a claim are left out."""
    found = [
        Claim(
            data=board.data, threat=board.threat, name=row.name, shown=row.shown, origin=row.origin,
            claimed=row.claimed, measured=row.measured, best_known=row.best_known, overclaim=row.overclaim,
            date=row.date,
        )
        for row in board.rows
        if row.claimed is not None and row.overclaim is not None
    ]  # fmt: skip
    return sorted(found, key=lambda claim: (-claim.overclaim, claim.name))


def claims_of(
    entries: Iterable[Entry], asked: tuple[str, str] | None = None, *, published: bool = True, ours: bool = True
) -> list[Claim]:
    """The claims of a board, or of all boards; of published entries also those that the README leaves out."""
    entries = tuple(entries)
    found: list[Claim] = []
    for data, threat in [asked] if asked is not None else board_names(entries):
        board = make_board(data, threat, entries, published=published, ours=ours, unlisted=True)
        found += board_claims(board)
    return sorted(found, key=lambda claim: (-claim.overclaim, claim.data, claim.threat, claim.name))


def over_a_point(claims: Sequence[Claim]) -> int:
    """How many claims lie more than one point above what was measured."""
    return sum(round(100 * claim.overclaim, 6) > 1 for claim in claims)


_TITLES = ("entry", "board", "claimed", "measured", "best known", "claimed - measured", "date")


def show_claims(claims: Sequence[Claim], format_: str) -> str:
    """The wall as plain lines ("rich"), Markdown, CSV, LaTeX or JSON."""
    if format_ == "json":
        told: dict[str, Any] = {"over_a_point": over_a_point(claims), "claims": [asdict(claim) for claim in claims]}
        return json.dumps(told, indent=2, ensure_ascii=False)
    if format_ == "csv":
        raw = [
            [c.name, f"{c.data} {c.threat}", 100 * c.claimed, 100 * c.measured,
             "" if c.best_known is None else 100 * c.best_known, 100 * c.overclaim, c.date]
            for c in claims
        ]  # fmt: skip
        return csv_table(_TITLES, raw).rstrip("\n")
    rows = [
        (
            c.shown, f"{c.data} {c.threat}", f"{100 * c.claimed:.2f}", f"{100 * c.measured:.2f}",
            "" if c.best_known is None else f"{100 * c.best_known:.2f}", points(c.overclaim), c.date,
        )
        for c in claims
    ]  # fmt: skip
    if format_ == "latex":
        return latex_table(_TITLES, rows)
    count = f"{over_a_point(claims)} of {len(claims)} claims lie more than one point above what was measured."
    escaped = [[plain_markdown(cell) for cell in row] for row in rows]
    table = markdown_table(_TITLES, escaped) if format_ == "md" else "\n".join(aligned([_TITLES, *rows], left=2))
    return f"{table}\n\n{count}"
