"""What makers of documents share: stored results, tables, and where a figure comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "load_result", "markdown_table", "source"]

RESULTS = Path(__file__).resolve().parent / "results"


def load_result(name: str) -> dict[str, Any]:
    """results/NAME.json."""
    table: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return table


def markdown_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def source(result: dict[str, Any]) -> str:
    """Command, date and machine."""
    machine = result["environment"]
    return f"`{result['command']}`, {result['date']}, {machine['processor']}, {machine['threads']} threads"
