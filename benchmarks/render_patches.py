"""The block of docs/patches.md."""

from __future__ import annotations

import statistics

from robustgen.benchmarks.tables import load_result, markdown_table, source
from robustgen.tables import interval_cell

__all__ = ["patches_speed"]


def patches_speed() -> str:
    """Images x steps a second and success, beside ART."""
    result = load_result("speed-patches")
    rows = [
        (
            str(row["batch"]), *(f"{statistics.median(row['per_second'][side]):,.0f}" for side in ("ours", "theirs")),
            f"{row['ratio']['median']:.1f} [{row['ratio']['min']:.1f}, {row['ratio']['max']:.1f}]",
            *(interval_cell(row["success"][side]) for side in ("ours", "theirs")), str(row["success"]["ours"]["n"]),
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = (
        "batch",
        "images x steps/s, ours",
        "ART",
        "ratio [min, max]",
        "success, ours, %",
        "ART, %",
        "unseen images",
    )
    forms = ", ".join(sorted({row["form"] for row in result["rows"]}))
    return f"{markdown_table(header, rows)}\n\n{result['what']}. Ours in {forms}, ART in float32. {source(result)}"
