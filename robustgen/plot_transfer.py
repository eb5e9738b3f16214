"""The heat map of a transfer matrix: surrogates in lines, targets in columns."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robustgen.plot import GREY, INK, STYLE, make_folder, need_matplotlib, save_figure
from robustgen.transfer import OTHERS, WHITE_BOX, TransferCell, TransferMatrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_transfer", "plot_transfer"]

_LINES = {OTHERS: "all others at once", WHITE_BOX: "white box"}


def plot_transfer(matrix: TransferMatrix, out: Path) -> Path:
    """Draw OUT/transfer.png.

    Raises:
        SpecError: matplotlib is missing, or the folder cannot be written.
    """
    need_matplotlib()
    make_folder(out)
    save_figure(draw_transfer(matrix), out / "transfer.png")
    return out / "transfer.png"


def draw_transfer(matrix: TransferMatrix) -> Figure:
    """Success in percent with its interval below; white where a classifier would be its own surrogate."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    cells = [[matrix.at(row, name) for name in matrix.names] for row in matrix.rows]
    rates = [[np.nan if c is None or c.success is None else c.success.value for c in line] for line in cells]
    with mpl.rc_context({**STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        size = (min(14, 3.4 + 1.3 * len(matrix.names)), min(14, 2.4 + 0.62 * len(matrix.rows)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(np.array(rates), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        figure.colorbar(image, ax=axes, label="share broken", fraction=0.05)
        marks = [f"{name} ⚑" if matrix.flags.get(name) else name for name in matrix.names]
        axes.set_xticks(range(len(marks)), marks, rotation=30, ha="right")
        axes.set_yticks(range(len(matrix.rows)), [_LINES.get(row, row) for row in matrix.rows])
        axes.set(xlabel="target, which judges", ylabel="attacked in its place")
        for row, line in enumerate(cells):
            for column, cell in enumerate(line):
                dark = np.nan_to_num(rates[row][column]) >= INK
                colour = GREY if cell is None else "white" if dark else "black"
                axes.text(column, row, _text(cell), ha="center", va="center", fontsize=7.5, color=colour)
        figure.suptitle(f"{matrix.data}, the first {matrix.n} examples, {matrix.threat}", fontsize=11)
        told = (
            "Share of the images that the target classifies right which an attack broke, in %, with its 95 % interval. "
            "⚑: attacks made elsewhere broke more than the same attacks on the target itself."
        )
        figure.supxlabel(textwrap.fill(told, 100), fontsize=7.5, color=GREY, x=0.02, ha="left")
    return figure


def _text(cell: TransferCell | None) -> str:
    if cell is None or cell.success is None:
        return "–"
    s = cell.success
    return f"{100 * s.value:.0f}\n[{100 * s.low:.0f}, {100 * s.high:.0f}]"
