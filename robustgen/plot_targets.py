"""The picture of a run with a goal: success of each label towards each class, as a matrix."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robustgen.journal import saved_spec
from robustgen.plot import GREY, INK, STYLE, draw_examples, make_folder, need_matplotlib, save_figure
from robustgen.progress import Progress
from robustgen.record import RunRecord
from robustgen.runs import load_run_data, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_targets", "has_targets", "plot_targets"]

_NAMED = 20  # classes whose names and figures are written


def has_targets(run: Path) -> bool:
    """Whether a run folder, finished or not, has a goal; no where there is no run."""
    spec = saved_spec(run)
    return spec is not None and spec.goal != "untargeted"


def plot_targets(run: Path, *, out: Path | None, data_dir: Path | None, progress: Progress) -> list[Path]:
    """Draw targets.png of a finished run with a goal, and examples.png unless it went through all classes.

    Args:
        run: a run folder.
        out: where the pictures go; by default the run folder.
        data_dir: where full data sets lie.
        progress: told where there is nothing to show.

    Raises:
        SpecError, ArtifactError, RecordError: no finished run, its data cannot be had, or a folder cannot be written.
    """
    need_matplotlib()
    record = RunRecord.load(run)
    dataset, _ = load_run_data(run, record.spec, data_dir)
    out = out or run
    make_folder(out)
    pictures = [out / "targets.png"]
    save_figure(draw_targets(record, dataset.class_names), pictures[0])
    if record.spec["goal"] == "all":
        return pictures
    return [*pictures, *draw_examples(open_run(run, data_dir), out, progress)]


def draw_targets(record: RunRecord, class_names: Sequence[str]) -> Figure:
    """A row a label, a column a class; white where nothing was attacked."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = record.targets
    assert found is not None  # the specification has a goal
    rows, columns = len(found.labels), len(found.attacked[0])
    rates = [[found.rate(row, target) for target in range(columns)] for row in range(rows)]
    with mpl.rc_context({**STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(min(12, 3 + 0.55 * columns), min(12, 2.2 + 0.45 * rows)), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(np.array(rates, dtype=float), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        figure.colorbar(image, ax=axes, label="share reached", fraction=0.05)
        axes.set(xlabel="target", ylabel="label")
        if columns <= _NAMED:
            axes.set_xticks(range(columns), [_name(class_names, k) for k in range(columns)], rotation=40, ha="right")
            axes.set_yticks(range(rows), [_name(class_names, label) for label in found.labels])
            for row, column in ((r, c) for r in range(rows) for c in range(columns)):
                rate = rates[row][column]
                text, colour = (
                    ("–", GREY) if rate is None else (f"{100 * rate:.0f}", "black" if rate < INK else "white")
                )
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        spec = record.spec
        figure.suptitle(f"{spec['classifier']} on {spec['data']}, {spec['threat']}, goal {spec['goal']}", fontsize=11)
        share = "nothing was attacked" if found.success is None else f"{found.success} of all pairs reached"
        told = f"Share of examples of a label, classified correctly, that became the target, in %. {share}."
        figure.supxlabel(textwrap.fill(told, 110), fontsize=7.5, color=GREY, x=0.02, ha="left")
    return figure


def _name(class_names: Sequence[str], label: int) -> str:
    text = class_names[label] if label < len(class_names) else str(label)
    return textwrap.shorten(text.replace("_", " "), 16, placeholder=" …")
