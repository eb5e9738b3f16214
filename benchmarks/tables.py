"""What makers of documents share: stored results, tables, and where a figure comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustgen.tables import markdown_table

__all__ = ["RESULTS", "load_result", "markdown_table", "ratio_cell", "source"]

RESULTS = Path(__file__).resolve().parent / "results"


def load_result(name: str) -> dict[str, Any]:
    """results/NAME.json."""
    table: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return table


def ratio_cell(ratio: Mapping[str, float]) -> str:
    """Median, least and greatest ratio of the pairs of a `Comparison`."""
    return f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]"


def source(result: dict[str, Any]) -> str:
    """Command, date and machine; where rows were measured on several days, which of them when and where."""
    rows: dict[str, list[str]] = {}
    held = result.get("rows")
    for row in held if isinstance(held, list) else []:
        if "measured" in row:
            rows.setdefault(row["measured"], []).append(f"{row['classifier']}, {row['threat']}")
    machine = result["environment"]
    whole = f"{result['date']}, {machine['processor']}, {machine['threads']} threads"
    if len(rows) > 1:
        whole = "; ".join(f"{when} ({', '.join(dict.fromkeys(which))})" for when, which in rows.items())
    return f"`{result['command']}`, {whole}"
