"""A long measurement in pieces: nothing is done twice, and it stops between two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from robustgen.benchmarks.harness import Pieces


def test_each_piece_is_done_once(tmp_path: Path) -> None:
    """A second process finds what the first one left; a piece that failed is done again."""
    calls: list[int] = []

    def work(number: int) -> dict[str, Any]:
        calls.append(number)
        if number == 2 and calls.count(2) == 1:
            raise ValueError("interrupted")
        return {"square": number**2}

    for _ in range(2):
        piece = Pieces(tmp_path / "work")
        assert {"square": 1} == piece("one", work, 1)
        if len(calls) == 1:
            with pytest.raises(ValueError, match="interrupted"):
                piece("two", work, 2)
    assert {"square": 4} == piece("two", work, 2)
    assert [1, 2, 2] == calls


def test_no_piece_begins_after_the_time(tmp_path: Path) -> None:
    """What is done is still read."""
    Pieces(tmp_path)("one", lambda: {"a": 1})
    late = Pieces(tmp_path, seconds=0.0)
    assert {"a": 1} == late("one", lambda: {"a": 2})
    with pytest.raises(SystemExit, match="time is up before two"):
        late("two", lambda: {"a": 2})
