"""The curve of success against queries from runs of attacks that see answers only; nothing is attacked again."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustgen.errors import SpecError
from robustgen.plot import GREY, STYLE, make_folder, need_matplotlib, save_figure
from robustgen.plot_distances import COLOURS, LINES, check_shared
from robustgen.queries import QuerySummary
from robustgen.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_queries", "has_queries", "plot_queries"]


def has_queries(run: Path) -> bool:
    """Whether a folder holds a finished run that says how many queries its attacks took."""
    return (run / "record.json").is_file() and (run / "spec.json").is_file() and _queries(run) is not None


def _queries(run: Path) -> object:
    return RunRecord.load(run).queries


def plot_queries(runs: Sequence[Path], *, out: Path | None) -> list[Path]:
    """Draw success-queries.png with one curve for each attack of each run.

    Args:
        runs: run folders of attacks that see answers only, over the same examples under the same threat model.
        out: where the picture goes; by default the first run folder.

    Raises:
        SpecError: a run of other attacks, runs of different examples, or a folder that cannot be written.
        RecordError: a folder holds no finished run.
    """
    need_matplotlib()
    records = [RunRecord.load(run) for run in runs]
    for run, record in zip(runs, records, strict=True):
        if record.queries is None:
            raise SpecError(
                f"{run} does not count queries, so it cannot share this picture; its attacks must all see answers "
                "only, as with robustgen eval --queries 1000, under a threat model with an eps."
            )
    check_shared(runs, records)
    out = out or runs[0]
    make_folder(out)
    save_figure(draw_queries(records), out / "success-queries.png")
    return [out / "success-queries.png"]


def draw_queries(records: Sequence[RunRecord]) -> Figure:
    """Share of the attacked examples broken against queries; a colour an attack, a line style a run."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    names = list(dict.fromkeys(name for record in records if record.queries for name in record.queries.attacks))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.8), layout="constrained")
        axes = figure.add_subplot()
        reach = 1
        for k, record in enumerate(records):
            assert record.queries is not None
            for name, row in record.queries.attacks.items():
                colour, line = COLOURS[names.index(name) % len(COLOURS)], LINES[_style(k, names.index(name))]
                label = name if len(records) == 1 else f"{record.spec['classifier']}, {name}"
                _curve(axes, row, f"{label}: {_told(row)}", colour, line, band=len(names) * len(records) <= 3)
                reach = max(reach, row.most)
        axes.set(ylabel="share broken", ylim=(0, 1.02), xlim=(0, 1.02 * reach), xlabel="queries for an example")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False, loc="best", fontsize=8)
        spec = records[0].spec
        figure.suptitle(f"{spec['data']}, {records[0].n} examples, {spec['threat']}", fontsize=12)
        figure.supxlabel(_caption(), fontsize=7.5, color=GREY, x=0.02, ha="left")
    return figure


def _style(run: int, attack: int) -> int:
    """Which line: another one a run, and where the colours begin again."""
    return (run + attack // len(COLOURS)) % len(LINES)


def _curve(axes: Axes, row: QuerySummary, label: str, colour: str, line: str, *, band: bool) -> None:
    """One attack's curve up to its budget."""
    if not row.curve:
        return
    at, value = [p.queries for p in row.curve], [p.value for p in row.curve]
    low, high = [p.low for p in row.curve], [p.high for p in row.curve]
    at, value, low, high = [*at, row.most], [*value, value[-1]], [*low, low[-1]], [*high, high[-1]]
    if band:
        axes.fill_between(at, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
    axes.plot(at, value, line, color=colour, drawstyle="steps-post", label=label)


def _told(row: QuerySummary) -> str:
    return f"{100 * row.success:.0f} %" + ("" if row.median is None else f", median {row.median}")


def _caption() -> str:
    text = (
        "Share of the examples classified correctly that an attack broke within so many queries; misclassified ones "
        "are left out. The median is over what it broke. Bands, where drawn: Dvoretzky-Kiefer-Wolfowitz, 95 % for a "
        "whole curve."
    )
    return textwrap.fill(text, 132)
