"""How long the same distance takes: our minimum-norm attacks against the fastest of adv-lib and foolbox.

Every attack of a norm runs at several budgets on the same images, one run each. The goal is 1 % above the smallest
distance that any attack of theirs reached at any budget, once as the mean over the images and once as the median, which
jumps by an image; the quickest run of each side that reaches it is then timed in turn with the other's. Further lines
compare FMN with FMN in the same way, since it is the attack that all three libraries have. Distances are judged as in
`robustgen.benchmarks.distances`. The picture docs/speed-distances.png is drawn from the stored result, by `--draw`
without measuring again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import robustgen
from robustgen.benchmarks.distances import Bench, images
from robustgen.benchmarks.distances_peers import (
    INSTALL,
    LIBRARIES,
    STEPS_A_CLASS,
    Entrant,
    entrants,
    missing_libraries,
)
from robustgen.benchmarks.harness import DOCS, Comparison, Pieces, in_turn, store
from robustgen.benchmarks.tables import load_result
from robustgen.environment import tune_process
from robustgen.judge import strict_float32
from robustgen.plot import STYLE, need_matplotlib, save_figure
from robustgen.plot_distances import COLOURS
from robustgen.threat import Norm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CASES: tuple[tuple[str, Norm], ...] = (
    ("fmnist-at-l2", "l2"), ("fmnist-at-l2", "linf"), ("fmnist-at-l2", "l1"), ("fmnist-standard", "l2"),
    ("fmnist-standard", "linf"), ("fmnist-standard", "l1"), ("cifar10-at", "l2"), ("cifar10-at", "linf"),
)  # fmt: skip
BUDGETS = (20, 40, 60, 100, 200, 300, 600)  # forwards and backwards an image
IMAGES, PAIRS = 128, 5
WALKS = (STEPS_A_CLASS, 16)  # steps a class of FMN-T; on held-out images of cifar10-at the short ones come nearer
NEAR = 1.01
LEFT_OUT = ("deepfool", "cw", "df", "EADAttack")  # attacks that never come near the best
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median_high,
}
PICTURE = DOCS / "speed-distances.png"


@dataclass(frozen=True, slots=True)
class Tried:
    """One attack at one budget: mean and median distance over all images, infinite without success, and its seconds."""

    entrant: Entrant
    budget: int
    distance: dict[str, float]
    seconds: float

    def __str__(self) -> str:
        far = ", ".join(f"{name} {value:.4g}" for name, value in self.distance.items())
        return f"{self.entrant.library} {self.entrant.attack} at {self.budget}: {far} in {self.seconds:.2f} s"

    def stored(self) -> dict[str, Any]:
        """For the JSON; null for what is infinite."""
        far = {name: value if math.isfinite(value) else None for name, value in self.distance.items()}
        named = {"library": self.entrant.library, "attack": self.entrant.attack, "budget": self.budget}
        settings = {key: str(value) for key, value in self.entrant.settings.items()}
        return {**named, "settings": settings, **far, "seconds": self.seconds}


def quickest(tried: Sequence[Tried], statistic: str, goal: float) -> Tried | None:
    """Of those that reach the goal."""
    return min((one for one in tried if one.distance[statistic] <= goal), key=lambda one: one.seconds, default=None)


def sides(tried: Sequence[Tried], statistic: str) -> tuple[Tried | None, Tried | None]:
    """Theirs, and ours, the quickest that reach 1 % above the best of theirs; None where nobody does.

    Where that best is infinite, which a mean is without success on a single image, any finite distance is the goal.

    Args:
        tried: of both sides.
        statistic: the distance that counts, a key of `STATISTICS`.
    """
    ours, others = ([one for one in tried if (one.entrant.library == "robustgen") is mine] for mine in (True, False))
    goal = min(NEAR * min(one.distance[statistic] for one in others), sys.float_info.max)
    return quickest(others, statistic, goal), quickest(ours, statistic, goal)


def run_once(bench: Bench, entrant: Entrant, budget: int) -> Tried:
    """Run, and say how it went."""
    begun = time.perf_counter()
    distances, _, _ = bench.run(entrant)
    seconds = time.perf_counter() - begun
    tried = Tried(entrant, budget, {name: of(distances) for name, of in STATISTICS.items()}, seconds)
    print(" ", tried, flush=True)
    return tried


def measure(name: str, norm: Norm, n: int, data_dir: Path | None) -> dict[str, Any]:
    """All attacks at all budgets, then the quickest of both sides in turn."""
    classifier = robustgen.load_classifier(name)
    bench = Bench(classifier, *images(classifier, data_dir, n), norm)
    with strict_float32():
        bench.run(Entrant("robustgen", "fmn", "", {"steps": 5}))  # warms up
        tried = [
            run_once(bench, entrant, budget)
            for budget in BUDGETS
            for entrant in entrants(norm, budget, classifier.card.classes, WALKS)
            if entrant.attack not in LEFT_OUT and entrant.like not in LEFT_OUT and entrant.library != "art"
        ]
        compared = {"any attack": tried, "FMN": [one for one in tried if "fmn" in one.entrant.attack.lower()]}
        lines = [
            {"compared": what, "statistic": statistic, **_line(bench, *sides(of, statistic))}
            for what, of in compared.items()
            for statistic in STATISTICS
        ]
    kept = [one.stored() for one in tried]
    return {
        "classifier": name, "norm": norm, "images": n, "form": str(bench.search.form), "lines": lines, "tried": kept,
    }  # fmt: skip


def _line(bench: Bench, theirs: Tried | None, ours: Tried | None) -> dict[str, Any]:
    """Who is compared, and the ratio of their seconds; null where one side comes nowhere as near."""
    seconds = None
    if ours and theirs:
        pair = (ours.entrant, theirs.entrant)
        seconds = Comparison(*in_turn([partial(bench.run, entrant) for entrant in pair], PAIRS)).summary()
        print(f"  {ours} beside {theirs}: {seconds['ratio']}", flush=True)
    return {"ours": ours and ours.stored(), "theirs": theirs and theirs.stored(), "seconds": seconds}


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Mean distance against seconds, a panel for each classifier and norm, a line for each attack over its budgets."""
    need_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(14, 3.3 * math.ceil(len(rows) / 4)), layout="constrained")
        for place, row in enumerate(rows, 1):
            axes = figure.add_subplot(math.ceil(len(rows) / 4), 4, place)
            _draw_row(axes, row)
        figure.axes[0].legend(loc="upper right", fontsize=8)
    return figure


def _draw_row(axes: Axes, row: dict[str, Any]) -> None:
    """Ours bold; the height ends at twice the smallest distance, beyond which nobody would stop."""
    lines: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    entered: Counter[tuple[str, str, int]] = Counter()  # an attack may be entered twice, with other settings
    for one in row["tried"]:
        key = (one["library"], one["attack"], one["budget"])
        far = math.inf if one["mean"] is None else one["mean"]
        lines.setdefault((*key[:2], entered[key]), []).append((one["seconds"], far))
        entered[key] += 1
    named = set()
    for (library, _, _), points in lines.items():
        label = None if library in named else library
        named.add(library)
        colour = COLOURS[("robustgen", "adv_lib", "foolbox").index(library)]
        width = 2.2 if library == "robustgen" else 1.1
        axes.plot(*zip(*points, strict=True), marker=".", color=colour, linewidth=width, label=label)
    lowest = min(far for points in lines.values() for _, far in points)
    axes.set(xscale="log", ylim=(0.97 * lowest, 2 * lowest), title=f"{row['classifier']}, {row['norm']}")
    axes.set(xlabel="seconds", ylabel="mean distance")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies; by default $ROBUSTGEN_DATA")
    parser.add_argument("--work", type=Path, default=Path("runs") / "speed-distances", help="for what is done already")
    parser.add_argument("--dry", action="store_true", help="store nothing")
    parser.add_argument("--draw", action="store_true", help="only draw what is stored")
    options = parser.parse_args()
    if options.draw:
        save_figure(draw(load_result("speed-distances")["rows"]), PICTURE)
        return
    if missing := [module for module in missing_libraries() if module != "art"]:
        raise SystemExit(f"{', '.join(missing)} cannot be found, with which this compares; type {INSTALL}.")
    tune_process()
    piece = Pieces(options.work)
    rows = [
        piece(f"{name}-{norm}", measure, name, norm, options.images // (2 if "cifar" in name else 1), options.data_dir)
        for name, norm in CASES
    ]
    if not options.dry:
        versions = {LIBRARIES[module]: version(LIBRARIES[module]) for module in ("adv_lib", "foolbox")}
        found = {"rows": rows, "budgets": BUDGETS, "pairs": PAIRS, "libraries": versions}
        print(store("speed-distances", found, module="speed.distances"))
        save_figure(draw(rows), PICTURE)


if __name__ == "__main__":
    main()
