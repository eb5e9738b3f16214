"""The blocks of docs/generator.md."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from robustgen.benchmarks.tables import load_result, markdown_table, source

__all__ = ["generator_cas", "generator_training", "orders"]


def orders() -> str:
    """Measured orders of convergence."""
    result = load_result("orders")
    steps = result["rows"][0]["steps"]
    header = ("sampler", *(f"{a} to {b} steps" for a, b in pairwise(steps)))
    rows = [(row["sampler"], *(f"{order:.3f}" for order in row["orders"])) for row in result["rows"]]
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def generator_cas() -> str:
    """What a small network learns from generated images, and from real ones, in as many steps."""
    result = load_result("generator_cas")
    rows = []
    for name, row in result["rows"].items():
        given, accuracy = row.get("provenance"), row["accuracy"]
        what = name
        if given is not None:
            what = f"{given['n']} images by {given['sampler']['name']}, {given['sampler']['steps']} steps"
        figure = f"{100 * accuracy['value']:.1f} % [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
        rows.append((what, figure, str(row["steps"]), f"{row['seconds']:.0f}"))
    table = markdown_table(("trained on", "accuracy on real test images", "steps", "seconds"), rows)
    return f"{table}\n\n{result['what']}; fmnist-edm. {source(result)}"


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
