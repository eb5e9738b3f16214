"""What makers of documents share: stored results, tables, and where a figure comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robustgen.tables import markdown_table

__all__ = ["RESULTS", "load_result", "markdown_table", "source"]

RESULTS = Path(__file__).resolve().parent / "results"


def load_result(name: str) -> dict[str, Any]:
    """results/NAME.json."""
    table: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return table


def source(result: dict[str, Any]) -> str:
    """Command, date and machine."""
    machine = result["environment"]
    return f"`{result['command']}`, {result['date']}, {machine['processor']}, {machine['threads']} threads"
