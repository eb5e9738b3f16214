"""Where marks stand in the pictures of a page: pure geometry, from figures to coordinates of SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robustgen.leaderboard.boards import Row
from robustgen.statistics import Estimate

__all__ = ["WIDTH", "Bar", "Curve", "Curves", "Plot", "Point", "Tick", "bar_of", "curves_of", "plot_of", "top_of"]

WIDTH = 200.0  # of a bar, in units of its picture
_PLOT = (720.0, 360.0)  # width and height of the plot
_MARGIN = (46.0, 14.0, 14.0, 42.0)  # left, top, right, bottom
_RADII = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0)  # between ticks of a radius
_STEPS = (1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure and its interval on a line from 0 to `WIDTH`."""

    low: float
    value: float
    high: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of the grid: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Point:
    """An entry in the plot; `low` and `high` are the ends of its interval, downwards as SVG counts."""

    name: str
    own: bool
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Robust accuracy upwards against clean accuracy to the right, with the frame that holds them."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """Certified accuracy of one entry against the radius: the path of SVG, and the marks of its intervals."""

    name: str
    path: str
    whiskers: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Several curves in one frame, as in `Plot`."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Curve, ...]


def top_of(rows: Sequence[Row]) -> float:
    """The accuracy at which the bars of a board end: a multiple of a tenth that no interval exceeds."""
    return min(1.0, max(0.1, math.ceil(10 * max((row.robust.high for row in rows), default=1.0)) / 10))


def bar_of(figure: Estimate, top: float) -> Bar:
    """A figure on a line that ends at the accuracy `top`."""
    return Bar(*(round(WIDTH * min(part / top, 1.0), 1) for part in (figure.low, figure.value, figure.high)))


def plot_of(rows: Sequence[Row]) -> Plot:
    """The plot of a board."""
    left, top, right, bottom = _MARGIN[0], _MARGIN[1], _PLOT[0] - _MARGIN[2], _PLOT[1] - _MARGIN[3]
    x_low, x_high, x_step = _axis([100 * row.clean.value for row in rows])
    y_low, y_high, y_step = _axis([100 * end for row in rows for end in (row.robust.low, row.robust.high)])

    def x_at(percent: float) -> float:
        return round(left + (percent - x_low) / (x_high - x_low) * (right - left), 1)

    def y_at(percent: float) -> float:
        return round(bottom - (percent - y_low) / (y_high - y_low) * (bottom - top), 1)

    points = tuple(
        Point(row.name, row.origin == "ours", x_at(100 * row.clean.value),
              *(y_at(100 * part) for part in (row.robust.value, row.robust.low, row.robust.high)))
        for row in rows
    )  # fmt: skip
    return Plot(
        width=_PLOT[0], height=_PLOT[1], left=left, top=top, right=right, bottom=bottom,
        x_ticks=tuple(Tick(x_at(v), f"{v:g}") for v in _places(x_low, x_high, x_step)),
        y_ticks=tuple(Tick(y_at(v), f"{v:g}") for v in _places(y_low, y_high, y_step)), points=points,
    )  # fmt: skip


def curves_of(
    held: Sequence[tuple[str, Sequence[tuple[float, float]]]], intervals: Sequence[tuple[float, Estimate]] = ()
) -> Curves:
    """Step curves that share a frame.

    Args:
        held: name, and radius with the share certified within it, rising; the share holds up to that radius.
        intervals: radius and figure, drawn on the first of them.
    """
    left, top, right, bottom = _MARGIN[0], _MARGIN[1], _PLOT[0] - _MARGIN[2], _PLOT[1] - _MARGIN[3]
    widest = max((points[-1][0] for _, points in held), default=0.0) or 1.0
    step = next((step for step in _RADII if widest <= 6 * step), widest / 6)
    end = step * math.ceil(widest / step)

    def x_at(radius: float) -> float:
        return round(left + min(radius / end, 1.0) * (right - left), 1)

    def y_at(share: float) -> float:
        return round(bottom - share * (bottom - top), 1)

    lines: list[Curve] = []
    for name, points in held:
        path = f"M{x_at(0.0)} {y_at(points[0][1])}"
        for (radius, _), (_, share) in zip(points[1:], [*points[2:], (0.0, 0.0)], strict=False):
            path += f"H{x_at(radius)}V{y_at(share)}"
        marks = "".join(f"M{x_at(r)} {y_at(f.low)}V{y_at(f.high)}" for r, f in intervals) if not lines else ""
        lines.append(Curve(name, path, marks))
    return Curves(
        width=_PLOT[0], height=_PLOT[1], left=left, top=top, right=right, bottom=bottom,
        x_ticks=tuple(Tick(x_at(k * step), f"{k * step:g}") for k in range(round(end / step) + 1)),
        y_ticks=tuple(Tick(y_at(k / 5), f"{20 * k}") for k in range(6)), lines=tuple(lines),
    )  # fmt: skip


def _axis(percents: Sequence[float]) -> tuple[float, float, float]:
    """Ends and step of an axis that holds all values: at most eight steps of a round width."""
    low, high = min(percents, default=0.0), max(percents, default=100.0)
    step = next(step for step in _STEPS if high - low <= 7 * step or step == _STEPS[-1])
    first, last = step * math.floor(low / step), step * math.ceil(high / step)
    return first, last if last > first else first + step, step


def _places(low: float, high: float, step: float) -> list[float]:
    return [low + k * step for k in range(round((high - low) / step) + 1)]
