"""The curve of robust accuracy against eps from runs of minimum-norm attacks: one run gives all of it.

An example counts as broken at every eps from the distance of its nearest witness on. Nothing is attacked again, and
neither data nor classifier is needed: the distances stand in examples.jsonl.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustgen.distances import accuracy_curve, nearest_of
from robustgen.errors import SpecError
from robustgen.example import ExampleRecord
from robustgen.journal import saved_spec
from robustgen.plot import GREY, STYLE, make_folder, need_matplotlib, save_figure
from robustgen.record import RunRecord
from robustgen.runs import read_examples
from robustgen.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "LINES", "check_shared", "draw_distances", "has_distances", "plot_distances"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito
LINES = ("-", "--", ":", "-.")
_FIXED = ("threat", "data", "data_sha256", "ids")  # what runs in one picture share


def has_distances(run: Path) -> bool:
    """Whether a run folder, finished or not, is one of minimum-norm attacks; no where there is no run."""
    spec = saved_spec(run)
    return spec is not None and not ThreatModel.parse_all(spec.threat, bare=True)[0].bounded


def plot_distances(runs: Sequence[Path], *, out: Path | None) -> list[Path]:
    """Draw accuracy-eps.png with one curve a run; of a single run also the curve of each attack.

    Args:
        runs: run folders that `robustgen eval --report distance` left, over the same examples in the same norm.
        out: where the picture goes; by default the first run folder.

    Raises:
        SpecError: a run inside an eps, runs of different examples or norms, or a folder that cannot be written.
        RecordError: a folder holds no finished run.
    """
    need_matplotlib()
    records = [RunRecord.load(run) for run in runs]
    for run, record in zip(runs, records, strict=True):
        if record.nearest is None:
            raise SpecError(
                f"{run} was made inside an eps; several runs are drawn together only where each comes from "
                "robustgen eval --report distance."
            )
    check_shared(runs, records)
    out = out or runs[0]
    make_folder(out)
    figure = draw_distances(records, [read_examples(run) for run in runs])
    save_figure(figure, out / "accuracy-eps.png")
    return [out / "accuracy-eps.png"]


def check_shared(runs: Sequence[Path], records: Sequence[RunRecord]) -> None:
    """Refuse runs of different examples or threat models in one picture.

    Raises:
        SpecError: names the field in which they differ.
    """
    for run, record in zip(runs, records, strict=True):
        for field in _FIXED:
            if record.spec[field] != records[0].spec[field]:
                raise SpecError(
                    f"{run} and {runs[0]} cannot share a picture: {field} is {record.spec[field]} there and "
                    f"{records[0].spec[field]} here."
                )


def draw_distances(records: Sequence[RunRecord], examples: Sequence[Sequence[ExampleRecord]]) -> Figure:
    """Robust accuracy against eps with its band, one colour a run."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    spec = records[0].spec
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.8), layout="constrained")
        axes = figure.add_subplot()
        reach = 0.0
        for k, (record, rows) in enumerate(zip(records, examples, strict=True)):
            colour, line = COLOURS[k % len(COLOURS)], LINES[k // len(COLOURS) % len(LINES)]
            reach = max(reach, _curve(axes, [nearest_of(e) for e in rows], _label(record), colour, line))
        if len(records) == 1 and len(records[0].attacks) > 1:
            _attacks(axes, records[0], examples[0])
        reach = reach or 1.0
        axes.set(ylabel="robust accuracy", ylim=(0, 1.02), xlim=(-0.02 * reach, 1.02 * reach), xlabel=_unit(spec))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False, loc="upper right", fontsize=8.5)
        figure.suptitle(f"{spec['data']}, {records[0].n} examples", fontsize=12)
        figure.supxlabel(_caption(), fontsize=7.5, color=GREY, x=0.02, ha="left")
    return figure


def _curve(axes: Axes, distances: Sequence[float], label: str, colour: str, line: str) -> float:
    """One run's curve and band; returns the largest finite distance."""
    points = accuracy_curve(distances)
    eps, value = [p.eps for p in points], [p.value for p in points]
    low, high = [p.low for p in points], [p.high for p in points]
    axes.fill_between(eps, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
    axes.plot(eps, value, line, color=colour, drawstyle="steps-post", label=label)
    return eps[-1]


def _attacks(axes: Axes, record: RunRecord, rows: Sequence[ExampleRecord]) -> None:
    """The curve of each attack alone, thin."""
    for k, attack in enumerate(record.attacks, 1):
        alone = [0.0 if e.broken_by == "clean" else (e.distances or {}).get(attack.name, math.inf) for e in rows]
        points = accuracy_curve(alone)
        axes.plot(
            [p.eps for p in points], [p.value for p in points], LINES[k % len(LINES)], linewidth=0.9,
            color=COLOURS[k % len(COLOURS)], drawstyle="steps-post", label=f"{attack.name} alone",
        )  # fmt: skip


def _label(record: RunRecord) -> str:
    assert record.nearest is not None
    median = record.nearest.distance.median
    return f"{record.spec['classifier']}, median {'inf' if median is None else f'{median:.3g}'}"


def _unit(spec: dict[str, str]) -> str:
    symbol = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$", "l0": r"$\ell_0$"}[spec["threat"]]
    return f"eps ({symbol}, {'changed pixels' if spec['threat'] == 'l0' else 'images in [0, 1]'})"


def _caption() -> str:
    text = (
        "Share of examples whose nearest adversarial image found lies further away than eps: an upper bound of robust "
        "accuracy. Bands: Dvoretzky-Kiefer-Wolfowitz, each holds a whole curve with 95 %."
    )
    return textwrap.fill(text, 132)
