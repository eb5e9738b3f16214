"""Tables of certified accuracy at radii, in five formats, and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robustgen.certify.logs import CertificationLog, envelope
from robustgen.errors import SpecError, unknown_name
from robustgen.fields import number

__all__ = ["FORMATS", "draw", "measured", "parse_radii", "render"]


def parse_radii(text: str) -> tuple[float, ...]:
    """Radii with commas.

    Raises:
        SpecError: not numbers of at least 0.
    """
    try:
        radii = tuple(float(part) for part in text.split(","))
    except ValueError:
        radii = ()
    if not radii or not all(number(0, float("inf"))(radius) for radius in radii):
        raise SpecError(f"--radii must be numbers >= 0 with commas, such as 0,0.25,0.5, got '{text}'.")
    return radii


def measured(logs: Sequence[CertificationLog], radii: Sequence[float]) -> dict[str, Any]:
    """Everything that is shown, as plain values; more than one log gives their envelope as well."""
    rows = []
    for log in logs:
        certified = [{"radius": r, **_plain(log.certified(r))} for r in radii]
        rows.append({
            "name": log.name, "n": len(log), "certified": certified, "acr": log.acr,
            "abstained": _plain(log.abstained), "seconds": float(log.seconds.sum()),
        })  # fmt: skip
    held: dict[str, Any] = {"radii": list(radii), "rows": rows}
    if len(logs) > 1:
        held["envelope"] = envelope(logs, radii)
    return held


def _plain(estimate: Any) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _table(held: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, in percent with intervals."""
    header = ["log", "n", *(f"r = {radius:g}" for radius in held["radii"]), "ACR", "abstained"]
    rows = []
    for row in held["rows"]:
        cells = [_cell(one) for one in row["certified"]]
        rows.append([row["name"], str(row["n"]), *cells, f"{row['acr']:.3f}", f"{100 * row['abstained']['value']:.1f}"])
    if "envelope" in held:
        best = [f"{100 * value:.1f}" for value in held["envelope"]]
        rows.append(["best log at each radius (chosen on these images)", "", *best, "", ""])
    return header, rows


def _cell(one: dict[str, float]) -> str:
    return f"{100 * one['value']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


def _markdown(held: dict[str, Any]) -> str:
    header, rows = _table(held)
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _text(held: dict[str, Any]) -> str:
    header, rows = _table(held)
    lines = [header, *rows]
    widths = [max(len(row[k]) for row in lines) for k in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in lines)


def _latex(held: dict[str, Any]) -> str:
    header = ["log", "n", *(f"{radius:g}" for radius in held["radii"]), "ACR"]
    lines = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\hline", " & ".join(header) + r" \\", r"\hline"]
    for row in held["rows"]:
        cells = [f"{100 * one['value']:.1f}" for one in row["certified"]]
        name = row["name"].replace("_", r"\_")
        lines.append(" & ".join([name, str(row["n"]), *cells, f"{row['acr']:.3f}"]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"])


def _csv(held: dict[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["log", "n", "radius", "certified", "low", "high"])
    for row in held["rows"]:
        for one in row["certified"]:
            writer.writerow([row["name"], row["n"], one["radius"], one["value"], one["low"], one["high"]])
    return stream.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    "rich": _text, "md": _markdown, "csv": _csv, "latex": _latex, "json": json.dumps,
}  # fmt: skip


def render(held: dict[str, Any], form: str) -> str:
    """The table in a format.

    Raises:
        SpecError: no such format.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    return FORMATS[form](held)


def draw(logs: Sequence[CertificationLog], path: Path) -> None:
    """Certified accuracy against the radius, a step curve a log."""
    import numpy as np
    from matplotlib.figure import Figure  # of the extra "report"

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for log in logs:
        reached = np.sort(log.radius[log.right])
        left = 100 * (len(reached) - np.arange(len(reached))) / len(log)
        axes.step([0.0, *reached], [100 * len(reached) / len(log), *left], where="pre", label=log.name)
    axes.set(xlabel="radius", ylabel="certified accuracy, %", ylim=(0, 100), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
