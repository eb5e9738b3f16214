"""Success against angle and scale: a stated grid of transformations, as JSON and as a heat map."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustgen.errors import SpecError
from robustgen.judge import strict_float32
from robustgen.patch.measure import Measured, MeasureRequest, describe, hold_out, store_result
from robustgen.patch.transforms import Transforms
from robustgen.plot import GREY, STYLE, need_matplotlib, save_figure
from robustgen.progress import Progress
from robustgen.statistics import proportion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ANGLES", "SCALES", "draw_heat", "grid_lines", "measure_grid", "parse_axis"]

ANGLES = "-60,-40,-20,0,20,40,60"
SCALES = "0.5,0.75,1,1.25,1.5"
_INK = 0.55  # success above which a cell is so dark that its figure is white


def parse_axis(name: str, text: str, *, positive: bool) -> tuple[float, ...]:
    """Numbers with commas, rising.

    Raises:
        SpecError: something else, or not above 0 where they must be.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    good = values and all(a < b for a, b in pairwise(values)) and np.isfinite(values).all()
    if not good or (positive and values[0] <= 0):
        kind = "positive numbers" if positive else "numbers"
        raise SpecError(f"--{name} must be rising {kind} with commas, such as 0.5,1,1.5, got '{text}'.")
    return values


def measure_grid(
    request: MeasureRequest, angles: tuple[float, ...], scales: tuple[float, ...], *, device: str, progress: Progress
) -> dict[str, Any]:
    """Success of the patch in every cell, all else neutral; kept as grid-CLASSIFIER-HASH.json and .png.

    Every cell sees the same images; a random location is drawn once for each image, the same in every cell.

    Args:
        request: as for `measure_patch`; its transforms count no more than that they are checked.
        angles: degrees, counter-clockwise.
        scales: side over the nominal side.
        device, progress: as there.

    Raises:
        SpecError, ArtifactError: the request cannot be met, a scale too large for the image among them.
    """
    need_matplotlib()
    held = hold_out(request, device=device)
    _, h, w = held.trained.patch.shape
    if scales[-1] * max(h / held.dataset.shape[1], w / held.dataset.shape[2]) > 1:
        raise SpecError(f"--scales: at {scales[-1]:g} the patch is larger than the image; leave it out.")
    progress.start("patch grid", len(angles) * len(scales))
    cells = []
    with strict_float32():
        for angle in angles:
            for scale in scales:
                won = held.successes(Measured(Transforms.none(), angle, scale), noise=False)
                cells.append({"angle": angle, "scale": scale, "success": asdict(proportion(won, len(held.ids)))})
                progress.advance(len(cells), f"{angle:g} degrees, {scale:g} times: {100 * won / len(held.ids):.1f} %")
    result = {**describe(held), "angles": list(angles), "scales": list(scales), "cells": cells}
    path = store_result(held, "grid", result)
    save_figure(draw_heat(result, held.trained.spec.transforms), path.with_suffix(".png"))
    return {**result, "picture": path.with_suffix(".png").name}


def draw_heat(result: dict[str, Any], trained_with: str) -> Figure:
    """A row an angle, a column a scale."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    angles, scales = result["angles"], result["scales"]
    rates = np.array([cell["success"]["value"] for cell in result["cells"]]).reshape(len(angles), len(scales))
    with mpl.rc_context({**STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(3 + 0.8 * len(scales), 2.2 + 0.45 * len(angles)), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(rates, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        figure.colorbar(image, ax=axes, label="success", fraction=0.05)
        axes.set(xlabel="scale (side over nominal side)", ylabel="angle (degrees)")
        axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        axes.set_yticks(range(len(angles)), [f"{angle:g}" for angle in angles])
        for (row, column), rate in np.ndenumerate(rates):
            colour = "black" if rate < _INK else "white"
            axes.text(column, row, f"{100 * rate:.0f}", ha="center", va="center", fontsize=8, color=colour)
        aim = "any wrong class" if result["target"] is None else f"class {result['target']}"
        figure.suptitle(f"{result['size']} patch towards {aim} on {result['classifier']}", fontsize=11)
        told = (
            f"Success in % on {result['n']} images of {result['data']} that training did not see; location "
            f"{result['location']}, trained on {result['trained_on']} with {trained_with}"
            f"{'' if result['camera'] is None else '; through a simulation of print and camera'}."
        )
        figure.supxlabel(textwrap.fill(told, 88), fontsize=7.5, color=GREY, x=0.02, ha="left")
    return figure


def grid_lines(result: dict[str, Any], folder: Path) -> list[str]:
    """The table in words, and where it is."""
    scales, cells = result["scales"], iter(result["cells"])
    lines = [f"success in % on {result['n']} images; columns: scale, rows: angle"]
    lines.append(f"{'':>8}" + "".join(f"{scale:>8g}" for scale in scales))
    rows = (
        f"{angle:>8g}" + "".join(f"{100 * next(cells)['success']['value']:>8.1f}" for _ in scales)
        for angle in result["angles"]
    )
    return [*lines, *rows, f"picture: {folder / result['picture']}"]
