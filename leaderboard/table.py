"""A board as a table: for terminals, Markdown, CSV, LaTeX and JSON; nothing here computes a figure."""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from robustgen.errors import unknown_name
from robustgen.leaderboard.boards import Board, Row
from robustgen.leaderboard.certified import CERTIFIED
from robustgen.statistics import Estimate
from robustgen.tables import aligned, csv_table, latex_table, markdown_table

__all__ = [
    "FORMATS", "Column", "board_json", "check_format", "columns_of", "plain_markdown", "points", "print_table",
    "ranks", "show_board",
]  # fmt: skip

FORMATS = ("rich", "md", "csv", "latex", "json")


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, its cell as text, its value for CSV; `narrow` where terminals show it."""

    title: str
    cell: Callable[[Row], str]
    value: Callable[[Row], object]
    narrow: bool = True


def check_format(name: str) -> None:
    """Refuse a format that there is not.

    Raises:
        SpecError: the nearest is suggested.
    """
    if name not in FORMATS:
        raise unknown_name("--format", name, FORMATS)


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns that some row fills."""
    extra = list(dict.fromkeys(name for row in rows for name in row.extra))
    always = [
        Column("#", lambda r: str(r.rank), lambda r: r.rank),
        Column("ranks", ranks, lambda r: f"{r.best}-{r.worst}"),
        Column("entry", lambda r: r.shown, lambda r: r.name),
        Column("clean", lambda r: _percent(r.clean.value), lambda r: 100 * r.clean.value),
        Column("robust", lambda r: _interval(r.robust), lambda r: 100 * r.robust.value),
    ]
    further = [Column(name, _extra(name), _extra_value(name), narrow=name in ("ACR", "sigma")) for name in extra]
    filled = [
        Column("measured", lambda r: _percent(r.measured), lambda r: 100 * r.measured, narrow=False),
        Column("claimed", lambda r: _percent(r.claimed), lambda r: _hundred(r.claimed), narrow=False),
        Column("claimed - measured", lambda r: points(r.overclaim), lambda r: _hundred(r.overclaim)),
        Column("queries", lambda r: _whole(r.queries), lambda r: r.queries),
        Column("extra data", lambda r: _yes(r.extra_data), lambda r: _yes(r.extra_data), narrow=False),
        Column("architecture", lambda r: r.architecture, lambda r: r.architecture),
        Column("venue", lambda r: r.venue, lambda r: r.venue, narrow=False),
        Column("date", lambda r: r.date, lambda r: r.date),
        Column("flags", lambda r: ", ".join(r.flags), lambda r: " ".join(r.flags)),
    ]
    return [*always, *further, *(column for column in filled if any(column.cell(row) for row in rows))]


def show_board(board: Board, format_: str) -> str:
    """The board in one of the forms but rich, which needs a terminal (`print_table`)."""
    columns = columns_of(board.rows)
    titles = [column.title for column in columns]
    if format_ == "json":
        return json.dumps(board_json(board), indent=2, ensure_ascii=False)
    if format_ == "csv":
        low_high = ("low", "high")
        lines = [
            [*(_blank(column.value(row)) for column in columns), 100 * row.robust.low, 100 * row.robust.high]
            for row in board.rows
        ]
        return csv_table([*titles, *low_high], lines).rstrip("\n")
    cells = [[column.cell(row) for column in columns] for row in board.rows]
    if format_ == "latex":
        return latex_table(titles, cells)
    return f"{markdown_table(titles, [[plain_markdown(cell) for cell in row] for row in cells])}\n\n{caption(board)}"


def print_table(board: Board) -> None:
    """The board on a terminal, or as plain lines where stdout is none."""
    columns = [column for column in columns_of(board.rows) if column.narrow]
    rows = [[column.cell(row) for column in columns] for row in board.rows]
    titles = [column.title for column in columns]
    if not sys.stdout.isatty():
        print("\n".join([*aligned([titles, *rows], left=3), "", caption(board)]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        left = title in ("entry", "architecture", "flags")
        table.add_column(title, justify="left" if left else "right", overflow="fold" if left else "ellipsis")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    console.print(table)
    console.print(Text(caption(board), style="dim"))


def caption(board: Board) -> str:
    """What stands behind the figures, in a sentence each."""
    told = (
        "robust: accuracy in % with its 95 % Wilson interval, the best known figure where there is one; ranks: those "
    )
    told += "that the data do not exclude."
    if board.threat.startswith(CERTIFIED):
        told += " It is certified: it holds against every attack within the radius; clean is the same at radius 0."
    return " ".join([f"{board.data}, {board.threat}; {board.images}.", told, *(f"Source: {s}." for s in board.sources)])


def board_json(board: Board) -> dict[str, Any]:
    """Ready for JSON: every figure a fraction of 1, null where there is none."""
    head = {key: getattr(board, key) for key in ("data", "threat", "images", "sources")}
    return {**head, "rows": [row_json(row) for row in board.rows]}


def row_json(row: Row) -> dict[str, Any]:
    """One row, without what only the paired test needs."""
    shown = {key: value for key, value in asdict(row).items() if key not in ("images", "broken", "place", "curve")}
    return {**shown, "overclaim": row.overclaim, "tied": row.tied}


def ranks(row: Row) -> str:
    """The ranks that the data do not exclude: "3" or "3-8"."""
    return f"{row.best}-{row.worst}" if row.tied else str(row.rank)


def points(value: float | None) -> str:
    """A difference of accuracies in points, with its sign."""
    return "" if value is None else f"{100 * value:+.2f}"


def plain_markdown(cell: str) -> str:
    """A text of somebody else's for Markdown, where < would begin HTML."""
    return html.escape(cell, quote=False)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _interval(figure: Estimate) -> str:
    return f"{100 * figure.value:.2f} [{100 * figure.low:.2f}, {100 * figure.high:.2f}]"


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _blank(value: object) -> object:
    return "" if value is None else value


def _extra(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row.extra[name]:.2f}" if name in row.extra else ""


def _extra_value(name: str) -> Callable[[Row], object]:
    return lambda row: row.extra.get(name)
