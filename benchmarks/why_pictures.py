"""The pictures of docs/why.md, drawn from stored results: a result to a figure, nothing is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from robustgen.benchmarks.why_models import read_rows
from robustgen.plot import GREY, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "picture", "read_picture"]

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe & Ito: told apart by everybody
_COLOURS = (_BLUE, _ORANGE, _GREEN, "#CC79A7", "#56B4E9", "#E69F00")


def dimension(result: dict[str, Any]) -> Figure:
    """Changes of the logits against the number of pixels; and what the gradient of a network promises."""
    figure = _figure(11.5, 3.6)
    changes, weights, *networks = figure.subplots(1, 2 + len(result["networks"]))
    rows, slopes = result["rows"], result["exponents"]
    pixels = [row["pixels"] for row in rows]
    for axes, suffix in ((changes, ""), (weights, "_by_weight")):
        for key, colour, name in (("adversarial", _ORANGE, "eps sign(w)"), ("random", _BLUE, "random signs")):
            change = [row[key] / (row["weight"] if suffix else 1) for row in rows]
            axes.loglog(pixels, change, "o-", color=colour, label=f"{name}: d^{slopes[key + suffix]:.2f}")
        axes.set_xlabel("pixels d")
        axes.set_xticks(pixels, [str(n) for n in pixels])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
    changes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10"])
    changes.set_ylabel("change of z_y - z_k")
    changes.set_title(f"linear, eps = {255 * result['eps']:.0f}/255", fontsize=10)
    weights.set_ylabel("the same / mean |w|")
    weights.set_title("in units of a weight", fontsize=10)
    for axes, network in zip(networks, result["networks"], strict=True):
        eps = [255 * row["eps"] for row in network["rows"]]
        for key, style, colour, name in (
            ("predicted", "--", GREY, "eps ||g||_1"), ("true", "o-", _ORANGE, "true, eps sign(g)"),
            ("random", "o-", _BLUE, "random signs"),
        ):  # fmt: skip
            axes.plot(eps, [row[key] for row in network["rows"]], style, color=colour, label=name, markersize=4)
        axes.axhline(network["margin"], color=GREY, linewidth=0.8, linestyle=":", label="the whole margin")
        axes.set_ylim(0, 2.3 * network["margin"])
        axes.set(title=network["classifier"], xlabel="eps in grey levels", ylabel="fall of the margin")
        axes.title.set_size(10)
        axes.legend(frameon=False, fontsize=8)
    return figure


def surface(result: dict[str, Any]) -> Figure:
    """Loss over the plane of the adversarial direction and a random one; the line is where the class changes."""
    from matplotlib.colors import LogNorm

    planes, axis = result["planes"], np.array(result["axis"])
    figure = _figure(9.2, 4.2 * len(planes) / 4 + 2.6)
    grid = figure.subplots(len(planes) // 2, 2, squeeze=False)
    across = axis - (axis.max() + axis.min()) / 2
    levels = np.logspace(-2, 1.25, 14)
    for axes, one in zip(grid.flat, planes, strict=True):
        loss, margin = (np.array(read_rows(one[key])) for key in ("loss", "margin"))
        shown = axes.contourf(axis, across, loss, levels=levels, norm=LogNorm(), cmap="viridis", extend="both")
        axes.contour(axis, across, margin, levels=[0], colors="white", linewidths=1.8)
        axes.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=6)
        axes.set_title(f"{one['classifier']}, example {one['id']}", fontsize=10)
        axes.set_xlabel("along the adversarial direction")
        axes.set_ylabel("along random signs")
    bar = figure.colorbar(shown, ax=grid, ticks=[0.01, 0.1, 1, 10], format="%g", shrink=0.85)
    bar.set_label("cross-entropy")
    return figure


def transfer(result: dict[str, Any]) -> Figure:
    """Who misleads whom, and how like the gradients are."""
    names, random = result["names"], [100 * result["random"][b]["value"] for b in result["names"]]
    figure = _figure(11.5, 4.3)
    grid = figure.subplots(1, 3)
    for axes, attack in zip(grid, ("fgsm", "pgd"), strict=False):
        table = [[100 * result["success"][attack][a][b]["value"] for b in names] for a in names]
        _matrix(axes, [*table, random], [*names, "random signs"], names, "{:.0f}", 100, "OrRd")
        axes.set_title(f"{attack.upper()}, {result['threat']}: misled, %", fontsize=10)
        axes.set_xlabel("target")
    grid[0].set_ylabel("source of the direction")
    _matrix(grid[2], [[result["cosine"][a][b] for b in names] for a in names], names, names, "{:.2f}", 1, "Blues")
    grid[2].set_title("mean cosine of the gradients", fontsize=10)
    return figure


def _matrix(
    axes: Axes, table: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], form: str, top: float,
    cmap: str,
) -> None:  # fmt: skip
    axes.imshow(np.array(table), cmap=cmap, vmin=0, vmax=top)
    axes.set_xticks(range(len(columns)), [name.removeprefix("fmnist-") for name in columns], rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), [name.removeprefix("fmnist-") for name in rows])
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            dark = value > 0.6 * top
            axes.text(j, i, form.format(value), ha="center", va="center", color="white" if dark else "black")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)


def gradients(result: dict[str, Any]) -> Figure:
    """Images, the gradients of the margin, and how far the boundary is by them."""
    figure = _figure(10.5, 4.4)
    left, right = list(figure.subfigures(1, 2, width_ratios=(1.15, 1), squeeze=False).flat)
    rows = [("image", result["images"]), *zip(result["names"], result["gradients"], strict=True)]
    grid = left.subplots(len(rows), len(result["ids"]))
    for line, (name, pictures) in zip(grid, rows, strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            low, cmap = (0, "gray_r") if name == "image" else (-1, "RdBu_r")
            axes.imshow(read_picture(picture), cmap=cmap, vmin=low, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name, fontsize=9)
    axes = right.subplots()
    for row, colour in zip(result["rows"], _COLOURS, strict=False):
        quantiles = row["by_gradient_quantiles"]
        axes.plot(quantiles, np.linspace(0, 100, len(quantiles)), color=colour, label=row["classifier"])
    axes.set_xscale("log")
    axes.set(xlabel="margin / ||g||_1, pixels of [0, 1]", ylabel="images that are no farther away, %")
    axes.legend(frameon=False, fontsize=8)
    return figure


def read_picture(rows: Sequence[str]) -> npt.NDArray[np.float64]:
    """The inverse of `picture_rows`, (H, W) in [-1, 1]."""
    return (np.array([list(bytes.fromhex(row)) for row in rows], dtype=np.float64) - 128) / 127


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def picture(part: str, result: dict[str, Any]) -> Figure:
    """The picture of one part of `PICTURES`, from its stored result; matplotlib's settings are left as found."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        return PICTURES[part](result)


PICTURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "dimension": dimension, "surface": surface, "transfer": transfer, "gradients": gradients,
}  # fmt: skip
