"""How long the same distance takes: our minimum-norm attacks against the fastest of adv-lib and foolbox.

Every attack of a norm runs at several budgets on the same images, one run each. Theirs is the quickest that comes
within 1 % of the smallest median distance that any of them reached at any budget, ours the quickest whose median
distance is not above theirs; the two are then timed in turn. A second line compares FMN with FMN in the same way, since
it is the attack that all three libraries have. Distances are judged as in `robustgen.benchmarks.distances`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import robustgen
from robustgen.benchmarks.distances import Bench, images
from robustgen.benchmarks.distances_peers import INSTALL, LIBRARIES, Entrant, entrants, missing_libraries
from robustgen.benchmarks.harness import Comparison, Pieces, in_turn, store
from robustgen.environment import tune_process
from robustgen.judge import strict_float32
from robustgen.threat import Norm

CASES: tuple[tuple[str, Norm], ...] = (
    ("fmnist-at-l2", "l2"), ("fmnist-at-l2", "linf"), ("fmnist-at-l2", "l1"), ("fmnist-standard", "l2"),
    ("fmnist-standard", "linf"), ("fmnist-standard", "l1"), ("cifar10-at", "l2"), ("cifar10-at", "linf"),
)  # fmt: skip
BUDGETS = (100, 300, 600)  # forwards and backwards an image
IMAGES, PAIRS = 64, 3
NEAR = 1.01
LEFT_OUT = ("deepfool", "cw", "df", "EADAttack")  # attacks that never come near the best


@dataclass(frozen=True, slots=True)
class Tried:
    """One attack at one budget: the median distance over all images, infinite without success, and its seconds."""

    entrant: Entrant
    budget: int
    median: float
    seconds: float

    def __str__(self) -> str:
        what = f"{self.entrant.library} {self.entrant.attack} at {self.budget}"
        return f"{what}: {self.median:.4g} in {self.seconds:.2f} s"


def quickest(tried: Sequence[Tried], at_most: float) -> Tried | None:
    """Of those whose median distance is at most that."""
    return min((one for one in tried if one.median <= at_most), key=lambda one: one.seconds, default=None)


def sides(tried: Sequence[Tried]) -> tuple[Tried, Tried | None]:
    """Theirs, and ours that is at least as near; None where none of ours is.

    Args:
        tried: of both sides, theirs with at least one that found something.
    """
    others = [one for one in tried if one.entrant.library != "robustgen"]
    theirs = quickest(others, NEAR * min(one.median for one in others))
    assert theirs is not None
    return theirs, quickest([one for one in tried if one.entrant.library == "robustgen"], theirs.median)


def run_once(bench: Bench, entrant: Entrant, budget: int) -> Tried:
    """Run, and say how it went."""
    begun = time.perf_counter()
    distances, _, _ = bench.run(entrant)
    tried = Tried(entrant, budget, statistics.median_high(distances), time.perf_counter() - begun)
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
            for entrant in entrants(norm, budget, classifier.card.classes)
            if entrant.attack not in LEFT_OUT and entrant.like not in LEFT_OUT and entrant.library != "art"
        ]
        walks = [one for one in tried if "fmn" in one.entrant.attack.lower()]
        lines = {"any attack": _line(bench, tried), "FMN": _line(bench, walks)}
    return {"classifier": name, "norm": norm, "images": n, "form": str(bench.search.form), "lines": lines}


def _line(bench: Bench, tried: Sequence[Tried]) -> dict[str, Any]:
    """Who is compared, and the ratio of their seconds; null where we come nowhere as near."""
    theirs, ours = sides(tried)
    ratio = None
    if ours is not None:
        pair = (ours.entrant, theirs.entrant)
        ratio = Comparison(*in_turn([partial(bench.run, entrant) for entrant in pair], PAIRS)).summary()
        print(f"  {ours} beside {theirs}: {ratio['ratio']}", flush=True)
    return {"ours": _said(ours), "theirs": _said(theirs), "seconds": ratio}


def _said(one: Tried | None) -> dict[str, Any] | None:
    if one is None:
        return None
    entrant = one.entrant
    return {"library": entrant.library, "attack": entrant.attack, "budget": one.budget, "median": one.median}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies; by default $ROBUSTGEN_DATA")
    parser.add_argument("--work", type=Path, default=Path("runs") / "speed-distances", help="for what is done already")
    parser.add_argument("--dry", action="store_true", help="store nothing")
    options = parser.parse_args()
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


if __name__ == "__main__":
    main()
