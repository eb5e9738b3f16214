"""Tables of text cells in the forms that people and other programs read; nothing here computes a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

__all__ = ["aligned", "csv_table", "interval_cell", "latex_table", "markdown_table"]

Rows = Sequence[Sequence[str]]

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def interval_cell(figure: Mapping[str, float]) -> str:
    """A fraction of 1 and its interval in percent: value, low and high as "65.2 [60.9, 69.2]"."""
    return f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def markdown_table(header: Sequence[str], rows: Rows) -> str:
    """A table in Markdown, without a newline at its end."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def aligned(rows: Rows, left: int = 1) -> list[str]:
    """Rows of cells as lines of plain text; the first `left` columns are flush left, the others right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def csv_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Comma-separated values; numbers with every digit."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    return stream.getvalue()


def latex_table(header: Sequence[str], rows: Rows) -> str:
    """A `tabular` with the first column flush left and the others right; signs that LaTeX reads are escaped."""
    lines = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\hline", _latex_row(header), r"\hline"]
    return "\n".join([*lines, *map(_latex_row, rows), r"\hline", r"\end{tabular}"])


def _latex_row(row: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(sign, sign) for sign in cell) for cell in row) + r" \\"
