"""Attacks that see answers only against ART's: same classifier, images and budget in queries, success and distance.

Both sides are held to one rule, whatever they return: an image counts from the first query that lies inside eps and is
misclassified by the float32 classifier, queries of the clean image included, and nothing counts after the budget. ART
attacks one image at a time; each image that reaches the network is counted, and the one after the last ends the attack.
Our side pays one query for the clean pass, so its attacks get one less. Without an eps the distance is that
of the nearest misclassified image within the budget.

ART's SimBA and its attacks by labels know no eps. SimBA is therefore compared at a larger one, where its steps of 0.2
have room.

Needs adversarial-robustness-toolbox, in this environment or in one that shares its packages.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import robustgen
from robustgen import engine
from robustgen.attacks.base import AnswersOnly
from robustgen.attacks.plans import parse_attack
from robustgen.benchmarks.harness import Pieces, store
from robustgen.classifier import Classifier
from robustgen.environment import tune_process
from robustgen.judge import Judge, strict_float32
from robustgen.oracle import Oracle
from robustgen.precision import SearchForm, SearchModel
from robustgen.statistics import mcnemar
from robustgen.threat import ThreatModel


class Spent(Exception):  # noqa: N818 -- an end, no error
    """The budget of an image is spent."""


class Counted(nn.Module):
    """Passes images on, and remembers what the budget bought.

    Args:
        classifier: images to logits.
        x: (1, C, H, W), the image that is attacked.
        label: its class.
        threat: with an eps, or without one for distances.
        budget: images that may be sent.
        probabilities: answer with those instead of logits, where ART asks for them.
    """

    def __init__(
        self, classifier: nn.Module, x: Tensor, label: int, threat: ThreatModel, budget: int, *, probabilities: bool
    ) -> None:
        super().__init__()
        self.classifier, self.x, self.label, self.threat, self.budget = classifier, x, label, threat, budget
        self.probabilities = probabilities
        self.sent, self.first, self.nearest = 0, None, None

    sent: int
    first: int | None
    nearest: float | None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K).

        Raises:
            Spent: the budget was spent before these images, or is spent on some of them.
        """
        part = x[: self.budget - self.sent].float()  # ART sends float64 now and then
        with torch.no_grad():
            logits: Tensor = self.classifier(part) if len(part) else part.flatten(1)
        if len(part):
            inside = self.threat.contains(self.x, part)
            distance = self.threat.distance(self.x, part)
            for k in (inside & (logits.argmax(1) != self.label)).nonzero().flatten().tolist():
                self.first = self.first or self.sent + k + 1
                self.nearest = min(self.nearest or float("inf"), float(distance[k]))
        self.sent += len(part)
        if len(part) < len(x) or (self.threat.bounded and self.first is not None):
            raise Spent
        return logits.softmax(1) if self.probabilities else logits


Make = Callable[[Any, ThreatModel, int], Any]  # ART's estimator, threat model, budget -> its attack


def _hopskipjump(estimator: Any, threat: ThreatModel, _budget: int) -> Any:
    from art.attacks.evasion import HopSkipJump

    norm = 2 if threat.norm == "l2" else "inf"
    return HopSkipJump(estimator, norm=norm, max_iter=10**6, init_eval=100, init_size=100, verbose=False)


def _boundary(estimator: Any, _threat: ThreatModel, _budget: int) -> Any:
    from art.attacks.evasion import BoundaryAttack

    return BoundaryAttack(estimator, targeted=False, max_iter=10**6, verbose=False)


def _simba(estimator: Any, _threat: ThreatModel, budget: int) -> Any:
    from art.attacks.evasion import SimBA

    return SimBA(estimator, attack="px", epsilon=0.2, max_iter=budget, verbose=False)


def _simba_dct(estimator: Any, _threat: ThreatModel, budget: int) -> Any:
    from art.attacks.evasion import SimBA

    return SimBA(estimator, attack="dct", epsilon=0.2, freq_dim=14, stride=7, max_iter=budget, verbose=False)


def _square(estimator: Any, threat: ThreatModel, budget: int) -> Any:
    from art.attacks.evasion import SquareAttack

    norm = 2 if threat.norm == "l2" else np.inf
    return SquareAttack(estimator, norm=norm, eps=threat.eps, max_iter=budget, verbose=False)


@dataclass(frozen=True, slots=True)
class Pair:
    """One of our attacks, ART's of the same name, and the threat model of both."""

    ours: str
    theirs: Make
    threat: str


PAIRS = (
    Pair("square", _square, "linf:0.05"),
    Pair("hopskipjump", _hopskipjump, "linf:0.05"),
    Pair("square", _square, "l2:0.5"),
    Pair("simba", _simba, "l2:1.5"),
    Pair("simba-dct", _simba_dct, "l2:1.5"),
    Pair("hopskipjump", _hopskipjump, "l2:0.5"),
    Pair("boundary", _boundary, "l2:0.5"),
    Pair("hopskipjump", _hopskipjump, "l2"),
    Pair("hopskipjump", _hopskipjump, "linf"),
    Pair("boundary", _boundary, "l2"),
)


def their_side(
    pair: Pair, classifier: Classifier, x: Tensor, y: Tensor, budget: int
) -> list[tuple[int | None, float | None]]:
    """Of each image the query that broke it, or None, and the distance of the nearest broken one."""
    from art.estimators.classification import PyTorchClassifier

    threat, found = ThreatModel.parse(pair.threat, bare=True), []
    classes = int(classifier(x[:1]).shape[1])
    for k, (image, label) in enumerate(zip(x.split(1), y.tolist(), strict=True)):
        counted = Counted(classifier, image, label, threat, budget, probabilities=pair.ours.startswith("simba"))
        estimator = PyTorchClassifier(
            counted, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=classes,
            clip_values=(0.0, 1.0), device_type="cpu",
        )  # fmt: skip
        np.random.seed(k)  # noqa: NPY002 -- the generator that ART draws from
        with suppress(Spent):
            pair.theirs(estimator, threat, budget).generate(image.numpy(), np.eye(classes, dtype=np.float32)[[label]])
        found.append((counted.first, counted.nearest))
    return found


def our_side(
    pair: Pair, classifier: Classifier, x: Tensor, y: Tensor, budget: int
) -> list[tuple[int | None, float | None]]:
    """The same of our attack, which gets one query less: the first is the clean pass."""
    threat, attack = ThreatModel.parse(pair.threat, bare=True), parse_attack(pair.ours)
    assert isinstance(attack, AnswersOnly)
    found: dict[int, engine.Outcome] = {}
    with strict_float32():
        engine.run(
            attack.limited(budget - 1), Oracle(SearchModel(classifier, SearchForm())), Judge(classifier, threat),
            lambda ids: (x[list(ids)], y[list(ids)]), range(len(x)), threat, seed=0, batch_size=250,
            finish=lambda o: found.__setitem__(o.id, o),
        )  # fmt: skip
    broken = [found[k] for k in range(len(x))]
    return [(o.forwards + 1 if o.broken else None, o.distance) for o in broken]


def summary(found: Sequence[tuple[int | None, float | None]], seconds: float) -> dict[str, Any]:
    """Success, median queries of the successes, median distance with what was not found as infinitely far (null)."""
    took = [q for q, _ in found if q is not None]
    distances = [float("inf") if d is None else d for _, d in found]
    middle = statistics.median_high(distances)
    return {
        "success": len(took) / len(found), "median_queries": statistics.median_low(took) if took else None,
        "median_distance": middle if np.isfinite(middle) else None, "queries": [q for q, _ in found],
        "distances": [d for _, d in found], "seconds": seconds,
    }  # fmt: skip


def measure(pair: Pair, classifier: Classifier, x: Tensor, y: Tensor, budget: int) -> dict[str, Any]:
    """One row: both sides on the same images, and who broke what the other did not, or came nearer."""
    sides = []
    for side in (our_side, their_side):
        begun = time.perf_counter()
        found = side(pair, classifier, x, y, budget)
        sides.append((found, summary(found, time.perf_counter() - begun)))
    (mine, ours), (other, theirs) = sides
    free = not ThreatModel.parse(pair.threat, bare=True).bounded
    far = float("inf")
    better = [
        (a[1] or far) < (b[1] or far) if free else bool(a[0]) and not b[0] for a, b in zip(mine, other, strict=True)
    ]
    worse = [
        (b[1] or far) < (a[1] or far) if free else bool(b[0]) and not a[0] for a, b in zip(mine, other, strict=True)
    ]
    if free:  # every query is spent, so it says nothing of success
        for row in (ours, theirs):
            row["median_queries"], row["queries"] = None, None
    return {
        "attack": pair.ours, "threat": pair.threat, "images": len(x), "budget": budget, "ours": ours, "theirs": theirs,
        "only_ours": sum(better), "only_theirs": sum(worse), "p": mcnemar(sum(better), sum(worse)),
    }  # fmt: skip


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classifier", default="fmnist-standard")
    parser.add_argument("--n", type=int, default=100, help="the first images; misclassified ones are left out")
    parser.add_argument("--budget", type=int, default=1000, help="queries for an image, the clean one included")
    parser.add_argument("--attacks", default="", help="only these of ours, with commas")
    parser.add_argument("--work", type=Path, default=Path("runs") / "queries", help="for what is done already")
    parser.add_argument("--seconds", type=float, help="no pair begins after so many; the same command goes on")
    parser.add_argument("--dry", action="store_true", help="store nothing")
    options = parser.parse_args()
    tune_process()
    piece = Pieces(options.work, options.seconds)
    classifier = robustgen.load_classifier(options.classifier)
    x, y = robustgen.load_data("fmnist-test-1k").batch(range(options.n))
    with torch.no_grad():
        right = classifier(x).argmax(1) == y
    wanted = [pair for pair in PAIRS if not options.attacks or pair.ours in options.attacks.split(",")]
    rows = [
        piece(f"{pair.ours}-{pair.threat.replace(':', '-')}", measure, pair, classifier, x[right], y[right],
              options.budget)
        for pair in wanted
    ]  # fmt: skip
    if not options.dry:
        peer = f"ART {version('adversarial-robustness-toolbox')}"
        print(store("queries", {"classifier": options.classifier, "peer": peer, "rows": rows}))


if __name__ == "__main__":
    main()
