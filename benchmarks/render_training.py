"""The block of docs/training.md: our training step beside the plain loop and ART."""

from __future__ import annotations

import statistics

from robustgen.benchmarks.tables import load_result, markdown_table, ratio_cell, source

__all__ = ["speed_training"]


def speed_training() -> str:
    """Images a second of each side, and the ratio of the pairs."""
    result, rows = load_result("speed-training"), []
    for row in result["rows"]:
        ours, theirs = (row["images"] / statistics.median(row[side]) for side in ("ours", "theirs"))
        rows.append(
            (row["network"], row["method"], row["peer"], f"{ours:.0f}", f"{theirs:.0f}", ratio_cell(row["ratio"]))
        )
    header = ("network", "method", "beside", "images/s, ours", "images/s, theirs", "ratio [min, max]")
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"
