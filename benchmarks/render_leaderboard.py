"""The blocks of docs/leaderboard.md: counts of claims, our own entries, and how fast the page is."""

from __future__ import annotations

import statistics

from robustgen.benchmarks.tables import load_result, markdown_table, source
from robustgen.leaderboard.boards import board_names, make_board
from robustgen.leaderboard.claims import board_claims, over_a_point
from robustgen.leaderboard.entries import EntryCard, load_entries
from robustgen.leaderboard.table import points

__all__ = ["board_page", "leaderboard_claims", "leaderboard_entries"]


def leaderboard_claims() -> str:
    """How many published claims lie over a point above what was measured, board by board."""
    rows, total = [], [0, 0, 0, 0]
    for data, threat in board_names(()):
        board = make_board(data, threat, (), unlisted=True)
        claims = board_claims(board)
        listed = sum(row.listed for row in board.rows)
        largest = f"{claims[0].shown} {points(claims[0].overclaim)}" if claims else ""
        counts = (len(board.rows), listed, len(claims), over_a_point(claims))
        rows.append((data, threat, *map(str, counts), largest))
        total = [a + b for a, b in zip(total, counts, strict=True)]
    rows.append(("all", "", *map(str, total), ""))
    header = ("data", "threat", "entries", "in the README", "with a claim", "over a point", "largest, points")
    return markdown_table(header, rows)


def leaderboard_entries() -> str:
    """Our own entries, as their cards say."""
    rows, entries = [], load_entries()
    for entry in entries:
        card = entry.card
        board = make_board(card.spec.data, card.threat, entries, published=False)
        shown = next(row for row in board.rows if row.name == card.name)
        claim = card.claimed if isinstance(card, EntryCard) else None
        claimed = "" if claim is None else f"{100 * claim.value:.1f} (n = {claim.n})"
        robust = f"{100 * shown.robust.value:.2f} [{100 * shown.robust.low:.2f}, {100 * shown.robust.high:.2f}]"
        clean = f"{100 * shown.clean.value:.2f}"
        rows.append((shown.shown, shown.venue, card.threat, str(card.n), clean, robust, claimed, card.date))
    header = ("classifier", "by", "threat", "images", "clean", "robust", "claimed", "card of")
    return markdown_table(header, rows)


def board_page() -> str:
    """First paint and sorts of a large board in Chromium."""
    result = load_result("board_page")
    measured: dict[str, tuple[list[float], list[float] | None]] = {
        "first paint": (result["paint_ms"], None),
        "first paint of a page of one word": (result["word_paint_ms"], None),
    }
    measured |= {f"sort by {name}": (one["ms"], one["cpu_ms"]) for name, one in result["sorts"].items()}
    rows = [
        (what, _spread(clock), "" if cpu is None else _spread(cpu)) for what, (clock, cpu) in measured.items()
    ]  # fmt: skip
    told = f"{result['rows']} rows, {result['bytes'] / 1e6:.2f} MB, Chromium {result['chromium']}. {result['what']}"
    table = markdown_table(("what", "ms, median [min, max]", "of the processor, ms"), rows)
    return f"{table}\n\n{told} {source(result)}"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} [{min(values):.0f}, {max(values):.0f}]"
