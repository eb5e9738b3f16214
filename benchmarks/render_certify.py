"""The blocks of docs/certification.md."""

from __future__ import annotations

import statistics
from typing import Any

from robustgen.benchmarks.tables import load_result, markdown_table, source
from robustgen.tables import interval_cell

__all__ = ["certify_inside", "certify_patches", "certify_replay", "certify_speed"]


def certify_replay() -> str:
    """Draws saved and certificates lost on published logs."""
    result = load_result("certify_replay")
    rows = [
        (
            row["log"], row["profile"], f"{row['draws']:,.0f}", f"{row['fewer']:.1f} x",
            f"{statistics.mean(row['lost']):.2f}", f"{max(row['lost']):.2f}", f"{row['false_certificates']:.1e}",
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = ("log", "profile", "draws an image", "fewer than 100,100", "points lost, mean over radii", "at most",
              "false certificates")  # fmt: skip
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def certify_speed() -> str:
    """Wall time against the reference algorithm in plain float32."""
    result = load_result("speed-certify")
    rows = [_side(method, result[method]) for method in ("fixed", "anytime")]
    header = ("method", "draws an image", "seconds, ours", "seconds, plain loop", "ratio [min, max]")
    few, many = result["memory_mib"].values()
    memory = f"Peak memory: {few:,.0f} MiB at 1,000 draws, {many:,.0f} MiB at 100,000."
    form = f"Ours in the form that was fastest here, {result['form']}."
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {form} {memory} {source(result)}"


def certify_inside() -> str:
    """Certified, attacked and clean accuracy of the same images."""
    result = load_result("certify_inside")
    rows = [
        (
            side["classifier"], f"{side['sigma']:g}", f"{row['radius']:g}",
            *(interval_cell(row[key]) for key in ("certified", "attacked", "clean")),
            f"{len(side['broken'])} of {side['attacked']}",
            f"{100 * side['share']:.1f} / {100 * side['attacked_share']:.1f}",
        )
        for side in result["rows"]
        for row in side["rows"]
    ]  # fmt: skip
    header = ("classifier", "sigma", "radius, L2", "certified, %", "attacked, %", "clean, %", "broken",
              "votes before / after, %")  # fmt: skip
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def certify_patches() -> str:
    """Certified accuracy against the side of a patch."""
    result = load_result("certify_patches")
    rows = [
        (
            side["method"], side["classifier"], str(side["n"]), interval_cell(side["undefended"]), str(row["patch"]),
            interval_cell(row["clean"]), interval_cell(row["certified"]),
        )
        for side in result["rows"]
        for row in side["rows"]
    ]  # fmt: skip
    header = ("method", "classifier", "images", "without a defence, %", "side", "defended, clean, %", "certified, %")
    return f"{markdown_table(header, rows)}\n\n{source(result)}"


def _side(method: str, side: dict[str, Any]) -> tuple[str, ...]:
    mine, theirs = (statistics.median(side[key]) for key in ("ours", "theirs"))
    ratio = side["ratio"]
    shown = f"{ratio['median']:.1f} [{ratio['min']:.1f}, {ratio['max']:.1f}]"
    return method, f"{side['draws']:,.0f}", f"{mine:.1f}", f"{theirs:.1f}", shown
