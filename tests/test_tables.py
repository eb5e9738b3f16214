"""Tables of text: what is put in can be read back, whatever signs stand in it."""

from __future__ import annotations

import csv
import io
import re

from robustgen.tables import aligned, csv_table, interval_cell, latex_table, markdown_table

HEADER = ("name", "r = 0", "n")
ROWS = [("a|b", "65.2 [60.9, 69.2]", "500"), ("net_1 & 50 %", "1.0", "7"), ("", "at r = 0", "")]


def test_markdown_keeps_its_columns() -> None:
    """Every line has as many cells as the header, also where a name has a bar in it."""
    lines = markdown_table(HEADER, ROWS).splitlines()
    cells = [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells == [list(HEADER), ["---"] * 3, *map(list, ROWS)]


def test_latex_escapes_its_signs() -> None:
    """Cells come back when escapes are undone; nothing in them separates columns or opens a comment."""
    lines = latex_table(HEADER, ROWS).splitlines()
    assert lines[0] == r"\begin{tabular}{lrr}"
    rows = [line.removesuffix(r" \\") for line in lines if line.endswith(r" \\")]
    cells = [[re.sub(r"\\([&%_])", r"\1", cell) for cell in re.split(r"(?<!\\)&", row)] for row in rows]
    assert [[cell.strip() for cell in row] for row in cells] == [list(HEADER), *map(list, ROWS)]
    assert r"\textbackslash{}\{x\}" in latex_table(("\\{x}",), [])


def test_csv_keeps_every_digit() -> None:
    """Read by Python's own reader; numbers are equal again."""
    _, first = csv.reader(io.StringIO(csv_table(("name", "x"), [('a, "b"', 0.1 + 0.2)])))
    assert (first[0], float(first[1])) == ('a, "b"', 0.1 + 0.2)


def test_aligned_lines_have_one_width() -> None:
    """The first columns flush left, the others right."""
    lines = aligned([HEADER, *ROWS], left=1)
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("a|b ")
    assert [line[-3:] for line in lines] == ["  n", "500", "  7", "   "]


def test_intervals_in_percent() -> None:
    """One digit after the point."""
    assert interval_cell({"value": 0.6523, "low": 0.6091, "high": 0.692}) == "65.2 [60.9, 69.2]"
