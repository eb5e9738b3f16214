"""Runs under a patch, by transfer and by queries on the board: cards that run again, on boards of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import robustgen
from robustgen.eps import same_threat
from robustgen.leaderboard.add import add_run
from robustgen.leaderboard.boards import board_names, find_board, make_board
from robustgen.leaderboard.build import build_site
from robustgen.leaderboard.entries import load_entries, request_of

DATA = "fmnist-test-1k"
KINDS: dict[str, dict[str, Any]] = {
    "patch:14x14": {"threat": "patch:14x14", "n": 1},
    "transfer/linf:0.1": {"threat": "linf:0.1", "surrogates": "fmnist-at,fmnist-at-l2", "n": 1},
    "queries/linf:0.4": {"threat": "linf:0.4", "plan": "queries", "n": 1},
}


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a card of each kind; filing one runs its own request as far as its specification."""
    folder = tmp_path_factory.mktemp("kinds")
    for number, asked in enumerate(KINDS.values()):
        robustgen.evaluate("fmnist-standard", DATA, precision="float32", out=folder / f"run-{number}", **asked)
        add_run(folder / f"run-{number}", folder / "cards")
    return folder / "cards"


@pytest.mark.parametrize("board", KINDS)
def test_each_kind_has_a_board(board: str, cards: Path) -> None:
    """It holds that card alone, and what sees less of the network stands beside nothing that sees all."""
    entries = load_entries(cards)
    assert (DATA, board) in board_names(entries)
    assert find_board(DATA, board, entries) == (DATA, board)
    rows = make_board(DATA, board, entries).rows
    assert ["fmnist-standard"] == [row.shown for row in rows]
    assert rows[0].robust.low <= rows[0].robust.value <= rows[0].robust.high
    assert make_board(DATA, "linf:0.1", entries, published=False).rows == ()


def test_requests_name_the_surrogates(cards: Path) -> None:
    """The command of a card says what was attacked in place of the target."""
    (card,) = (entry.card for entry in load_entries(cards) if entry.card.spec.surrogates)
    assert request_of(card.spec)["surrogates"] == "fmnist-at,fmnist-at-l2"
    assert "--surrogates fmnist-at,fmnist-at-l2" in card.command


def test_pages_of_these_boards(cards: Path, tmp_path: Path) -> None:
    """Each has a page that names its entry, whatever signs its threat model holds."""
    build_site(tmp_path, load_entries(cards))
    pages = [path for path in tmp_path.rglob("*.html") if "fmnist-standard" in path.read_text(encoding="utf-8")]
    for sign in ("patch", "transfer", "queries"):
        assert any(path.name.startswith(f"board-{DATA}-{sign}") for path in pages), [path.name for path in pages]


@pytest.mark.parametrize(
    ("mine", "theirs", "same"),
    [
        ("patch:6x6", "patch: 6 x 6", True),
        ("patch:6x6", "patch:6x7", False),
        ("patch:6x6@2,3", "patch:6x6@2,3", True),
        ("patch:6x6@2,3", "patch:6x6", False),
        ("patch:2x8,patch:8x2", "patch:2x8,patch:8x2", True),
        ("transfer/linf:8/255", "transfer/linf:0.0313725490", True),
        ("transfer/linf:0.1", "linf:0.1", False),
    ],
)
def test_threats_are_told_apart(mine: str, theirs: str, same: bool) -> None:
    """Windows by their pixels, the rest by their eps."""
    assert same_threat(mine, theirs) is same
