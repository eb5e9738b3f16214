"""The blocks of docs/generator.md."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from robustgen.benchmarks.tables import load_result, markdown_table, source

__all__ = ["generator_training", "orders"]


def orders() -> str:
    """Measured orders of convergence."""
    result = load_result("orders")
    steps = result["rows"][0]["steps"]
    header = ("sampler", *(f"{a} to {b} steps" for a, b in pairwise(steps)))
    rows = [(row["sampler"], *(f"{order:.3f}" for order in row["orders"])) for row in result["rows"]]
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def generator_training() -> str:
    """Our training step against the plain loop."""
    result = load_result("speed-generator-training")
    rows = []
    for name, side in result.items():
        if isinstance(side, dict) and "ratio" in side:
            rows.append((name, *_rates(side, result["images"]), _ratio(side)))
    header = ("what", "images/s, ours", "images/s, plain loop", "ratio [min, max]")
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def _rates(side: dict[str, Any], images: int) -> tuple[str, str]:
    ours, theirs = sorted(side["ours"]), sorted(side["theirs"])
    return f"{images / ours[len(ours) // 2]:.0f}", f"{images / theirs[len(theirs) // 2]:.0f}"


def _ratio(side: dict[str, Any]) -> str:
    ratio = side["ratio"]
    return f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]"
