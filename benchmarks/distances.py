"""Distances of our minimum-norm attacks beside those of other libraries, at one budget of forwards and backwards.

One row a classifier and norm: the same images, all classified correctly, and the same budget for every attack. Final
images of other libraries are clipped to [0, 1], which undoes rounding, and judged as ours are: misclassified in
float32, distance in float64; what a library says of them counts for nothing. Passes are counted at the network, for
ours by the oracle, and those of our judge beside it. Seconds: all attacks in turn, several times, on the first images.

Rows are stored as they are done; one that is there already is measured again only with `--again`. `--small` tries every
attack on a few images and stores nothing.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import robustgen
from robustgen import engine
from robustgen.attacks.plans import parse_attack
from robustgen.benchmarks.distances_peers import INSTALL, LIBRARIES, Counted, Entrant, entrants, missing_libraries
from robustgen.benchmarks.harness import RESULTS, Comparison, in_turn, store
from robustgen.classifier import Classifier
from robustgen.distances import distance_summary
from robustgen.environment import tune_process
from robustgen.judge import Judge, strict_float32
from robustgen.oracle import Cost, Oracle
from robustgen.precision import SearchModel, choose_form
from robustgen.threat import BALLS, Norm, ThreatModel

NAME = "distances"
CLASSIFIERS = {"fmnist-at-l2": 100, "fmnist-standard": 100, "cifar10-at": 50}  # images attacked
BUDGET = 600  # forwards and backwards an image
TIMED, ROUNDS = 16, 3  # images and turns of the timing
NEAR = 1.01  # so many times the best distance counts as near it
WHAT = (
    "All attacks of a norm attack the same images, classified correctly, at the same budget of forwards and backwards; "
    "an attack that ends by itself spends less. Each distance is that of the final image, judged in float32"
)


class Bench:
    """One classifier, its first correctly classified images, and a norm.

    Args:
        classifier: the untouched float32 network, which the libraries attack and the judge asks.
        x, y: (B, C, H, W) float32 in [0, 1] and (B,) int64, all classified correctly.
        norm: of the distances.
    """

    def __init__(self, classifier: Classifier, x: Tensor, y: Tensor, norm: Norm) -> None:
        self.classifier, self.x, self.y = classifier, x, y
        self.threat = ThreatModel.unbounded(norm)
        self.search: SearchModel = choose_form(classifier, x, y, exact=True, walks=norm != "l0")[0]

    def run(self, entrant: Entrant, n: int | None = None) -> tuple[list[float], Cost, int]:
        """Distance of each of the first n images, infinite without success; what was spent; passes of the judge."""
        if entrant.library == "robustgen":
            return self._ours(entrant, n)
        network, x, y = Counted(self.classifier), self.x[:n], self.y[:n]
        found = entrant.run(network, x, y).to(x)
        return self.judged(x, y, found), Cost(network.forwards, network.backwards), 0

    def judged(self, x: Tensor, y: Tensor, found: Tensor) -> list[float]:
        """Distance in float64 of each image (B, C, H, W) once clipped; infinite where it is classified correctly."""
        verdict = Judge(self.classifier, self.threat)(x, y, found.clamp(0, 1))
        far = torch.full_like(verdict.distance, math.inf)
        distances: list[float] = torch.where(verdict.broken, verdict.distance, far).tolist()
        return distances

    def _ours(self, entrant: Entrant, n: int | None) -> tuple[list[float], Cost, int]:
        judged, oracle = Counted(self.classifier), Oracle(self.search)
        outcomes = run_ours(entrant, oracle, Judge(judged, self.threat), self.x[:n], self.y[:n])
        return [math.inf if o.distance is None else o.distance for o in outcomes], oracle.cost, judged.forwards


def run_ours(entrant: Entrant, oracle: Oracle, judge: Judge, x: Tensor, y: Tensor) -> list[engine.Outcome]:
    """What an attack of robustgen leaves of each image."""
    found: dict[int, engine.Outcome] = {}
    engine.run(
        parse_attack(entrant.spec()), oracle, judge, lambda ids: (x[list(ids)], y[list(ids)]), range(len(x)),
        judge.threat, seed=0, batch_size=len(x), finish=lambda outcome: found.__setitem__(outcome.id, outcome),
    )  # fmt: skip
    return [found[id_] for id_ in range(len(x))]


def optimality(distances: Sequence[float], best: Sequence[float]) -> float | None:
    """1 less the area between an attack's curve and the best one, as a share of the area above the best one.

    The curves are robust accuracy against eps over the same images, all of them right at 0; the best one is that of the
    smallest distance of each image, and both end where it reaches 0, or its lowest point. 1 for an attack that is the
    best on each image, 0 for one that finds nothing before the end; None where the best one finds nothing.

    Args:
        distances: of the attack, one an image, infinite without success.
        best: the smallest of all attacks, of the same images.

    Source: Cinà et al. 2024, AttackBench, arXiv:2404.19460, local optimality. Computed here, without their library.
    """
    end = max((d for d in best if math.isfinite(d)), default=0.0)
    above = sum(max(0.0, end - d) for d in best)  # the area above a step function, times the number of images
    if above == 0:
        return None
    return sum(max(0.0, end - d) for d in distances) / above


def share_near(distances: Sequence[float], best: Sequence[float]) -> float:
    """The share of images at most 1 % farther than the best; where nothing breaks one, no attack is near."""
    return sum(d <= NEAR * b and math.isfinite(b) for d, b in zip(distances, best, strict=True)) / len(best)


def measure(bench: Bench, listed: Sequence[Entrant], *, rounds: int, timed: int) -> dict[str, Any]:
    """All attacks on all images, then in turn on the first `timed`; what the table says of each, and of our best."""
    found = [bench.run(entrant) for entrant in listed]
    best = _smallest([distances for distances, _, _ in found])
    seconds = in_turn([partial(bench.run, entrant, timed) for entrant in listed], rounds)
    ours = {entrant.attack: s for entrant, s in zip(listed, seconds, strict=True) if entrant.library == "robustgen"}
    attacks = []
    for entrant, (distances, cost, judged), spent in zip(listed, found, seconds, strict=True):
        attacks.append(
            {
                "library": entrant.library, "attack": entrant.attack, "like": entrant.like,
                "settings": {key: str(value) for key, value in entrant.settings.items()},
                **figures(distances, best), "forwards": cost.forwards / len(best),
                "backwards": cost.backwards / len(best), "judged": judged / len(best), "seconds": spent,
                "ratio": Comparison(ours[entrant.like], spent).summary()["ratio"] if entrant.like else None,
                "distances": [d if math.isfinite(d) else None for d in distances],
            }
        )  # fmt: skip
        print(line(attacks[-1]), flush=True)
    return {
        "form": str(bench.search.form), "timed": min(timed, len(best)), "attacks": attacks,
        "together": {side: figures(_smallest(part), best) for side, part in _sides(listed, found).items()},
    }  # fmt: skip


def _sides(listed: Sequence[Entrant], found: Sequence[tuple[list[float], Cost, int]]) -> dict[str, list[list[float]]]:
    """The distances of our attacks, and of all others."""
    sides: dict[str, list[list[float]]] = {"robustgen": [], "others": []}
    for entrant, (distances, _, _) in zip(listed, found, strict=True):
        sides["robustgen" if entrant.library == "robustgen" else "others"].append(distances)
    return sides


def _smallest(found: Sequence[Sequence[float]]) -> list[float]:
    """Image by image."""
    return [min(of_one) for of_one in zip(*found, strict=True)]


def figures(distances: Sequence[float], best: Sequence[float]) -> dict[str, Any]:
    """Success, quartiles, optimality and the share near the best."""
    compared = {"optimality": optimality(distances, best), "near": share_near(distances, best)}
    return {**asdict(distance_summary(distances)), **compared}


def line(attack: dict[str, Any]) -> str:
    """One attack, for people."""
    quartiles = " ".join("-" if attack[key] is None else f"{attack[key]:.4g}" for key in ("q25", "median", "q75"))
    ratio = "" if attack["ratio"] is None else f", {attack['ratio']['median']:.2f} x the seconds of {attack['like']}"
    optimal = "-" if attack["optimality"] is None else f"{attack['optimality']:.3f}"
    return (
        f"  {attack['library']:<9} {attack['attack']:<22} success {attack['success']:.2f}, quartiles {quartiles}, "
        f"optimality {optimal}, near {attack['near']:.2f}, {attack['forwards']:.0f} + {attack['backwards']:.0f}{ratio}"
    )


def images(classifier: Classifier, data_dir: Path | None, n: int) -> tuple[Tensor, Tensor]:
    """The first n test images that it classifies correctly, (n, C, H, W) float32 in [0, 1], and labels (n,) int64."""
    name = "cifar10" if classifier.card.data == "cifar10" else "fmnist-test-1k"
    x, y = robustgen.load_data(name, data_dir=data_dir).batch(range(4 * n))
    with torch.no_grad():
        right = (classifier(x).argmax(1) == y).nonzero().flatten()[:n]
    if len(right) < n:
        raise SystemExit(
            f"{classifier.card.name} is right on {len(right)} of {4 * n} images; ask for fewer by --images."
        )
    return x[right], y[right]


def norms_for(classifier: Classifier) -> list[Norm]:
    """L0 only where there is one channel: ours counts pixels, others values, which are the same there alone."""
    return [norm for norm in (*BALLS, "l0") if norm != "l0" or classifier.card.channels == 1]


def main() -> None:
    """Measure what is missing, print, store."""
    options = _options()
    if missing := missing_libraries():
        raise SystemExit(
            f"This compares with other libraries, and {', '.join(missing)} cannot be found; type {INSTALL}."
        )
    tune_process()
    path = RESULTS / f"{NAME}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() and not options.small else []
    for name in [options.classifier] if options.classifier else CLASSIFIERS:
        classifier, n = robustgen.load_classifier(name), options.images or CLASSIFIERS[name]
        x, y = images(classifier, options.data_dir, n)
        for norm in [options.norm] if options.norm else norms_for(classifier):
            key = {"classifier": name, "norm": norm, "images": n, "budget": options.budget}
            held = [row for row in rows if key.items() <= row.items()]
            if held and not options.again:
                continue
            print(*key.values(), flush=True)
            with strict_float32():
                listed = entrants(norm, options.budget, classifier.card.classes)
                row = {**key, **measure(Bench(classifier, x, y, norm), listed, rounds=options.rounds, timed=TIMED)}
            rows = [*(row for row in rows if (row["classifier"], row["norm"]) != (name, norm)), row]
            if not options.small:
                store(NAME, {"what": WHAT, "rows": rows, "rounds": options.rounds, "libraries": _versions()})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", choices=CLASSIFIERS)
    parser.add_argument("--norm", choices=(*BALLS, "l0"))
    parser.add_argument("--budget", type=int, default=BUDGET, help="forwards and backwards an image")
    parser.add_argument("--images", type=int, help="attacked, instead of what each classifier has")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of the timing")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies; by default $ROBUSTGEN_DATA")
    parser.add_argument("--again", action="store_true", help="measure again what is stored")
    parser.add_argument(
        "--small", action="store_true", help="every attack on 2 images at a fifth of the budget; stores nothing"
    )
    options = parser.parse_args()
    if options.small:
        options.images, options.rounds, options.budget = options.images or 2, 1, options.budget // 5
    if options.budget < 60:
        parser.error(f"--budget: below 60 forwards and backwards some attacks get no step, got {options.budget}.")
    return options


def _versions() -> dict[str, str]:
    return {package: version(package) for package in LIBRARIES.values()}


if __name__ == "__main__":
    main()
