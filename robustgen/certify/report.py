"""Tables of certified accuracy at radii, in five formats, and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustgen import tables
from robustgen.certify.logs import CertificationLog, envelope, not_comparable
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
    """Everything that is shown, as plain values; more than one log gives their envelope as well, or a note why not."""
    held: dict[str, Any] = {"radii": list(radii), "rows": [_row(log, radii) for log in logs]}
    if len(logs) > 1:
        note = not_comparable(logs)
        held |= {"envelope": envelope(logs, radii)} if note is None else {"note": note}
    return held


def _row(log: CertificationLog, radii: Sequence[float]) -> dict[str, Any]:
    certified = [{"radius": r, **asdict(log.certified(r))} for r in radii]
    seconds, divisor = float(log.seconds.sum()), log.linf_divisor
    linf = None
    if divisor is not None:
        linf = {
            "acr": log.acr / divisor, "certified": [{**one, "radius": one["radius"] / divisor} for one in certified],
        }  # fmt: skip
    return {
        "name": log.name, "n": len(log), "norm": log.norm, "certified": certified, "acr": log.acr, "linf": linf,
        "abstained": asdict(log.abstained), "seconds": None if math.isnan(seconds) else seconds,
    }  # fmt: skip


_BEST = "best log at each radius (chosen on these images: no classifier's certificate)"


def _table(held: dict[str, Any], cell: Callable[[dict[str, float]], str]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, in percent; below a row in another norm the radii at which the same share holds in Linf."""
    header = ["log", "n", "norm", *(f"r = {radius:g}" for radius in held["radii"]), "ACR", "abstained"]
    rows = []
    for row in held["rows"]:
        ends = [f"{row['acr']:.3f}", f"{100 * row['abstained']['value']:.1f}"]
        rows.append([row["name"], str(row["n"]), _norm(row["norm"]), *map(cell, row["certified"]), *ends])
        if row["linf"] is not None:
            same = [f"at r = {one['radius']:.3g}" for one in row["linf"]["certified"]]
            rows.append(["", "", "Linf", *same, f"{row['linf']['acr']:.3g}", ""])
    if "envelope" in held:
        rows.append([_BEST, "", "", *map(cell, held["envelope"]), "", ""])
    return header, rows


def _norm(name: str | None) -> str:
    return "-" if name is None else name.capitalize()


def _noted(table: str, held: dict[str, Any]) -> str:
    return f"{table}\n\n{held['note']}" if "note" in held else table


def _markdown(held: dict[str, Any]) -> str:
    return _noted(tables.markdown_table(*_table(held, tables.interval_cell)), held)


def _text(held: dict[str, Any]) -> str:
    header, rows = _table(held, tables.interval_cell)
    return _noted("\n".join(line.rstrip() for line in tables.aligned([header, *rows], left=3)), held)


def _latex(held: dict[str, Any]) -> str:
    return tables.latex_table(*_table(held, lambda one: f"{100 * one['value']:.1f}"))


def _csv(held: dict[str, Any]) -> str:
    rows = []
    for row in held["rows"]:
        rows += [_csv_row(row["name"], row["n"], row["norm"], one) for one in row["certified"]]
        if row["linf"] is not None:
            rows += [_csv_row(row["name"], row["n"], "linf", one) for one in row["linf"]["certified"]]
    rows += [_csv_row(f"{_BEST}: {one['log']}", "", None, one) for one in held.get("envelope", ())]
    return tables.csv_table(("log", "n", "norm", "radius", "certified", "low", "high"), rows).rstrip("\n")


def _csv_row(name: str, n: int | str, norm: str | None, one: dict[str, Any]) -> tuple[object, ...]:
    return name, n, norm or "", one["radius"], one["value"], one["low"], one["high"]


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

    figure = Figure(figsize=(7.6, 4), layout="constrained")
    axes = figure.subplots()
    for log in logs:
        reached = np.sort(log.radius[log.right])
        left = 100 * (len(reached) - np.arange(len(reached))) / len(log)
        axes.step([0.0, *reached], [100 * len(reached) / len(log), *left], where="pre", label=log.name)
    axes.set(xlabel="radius", ylabel="certified accuracy, %", ylim=(0, 100), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=150)
