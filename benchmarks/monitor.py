"""Monitors of queries against attacks: false alarms on honest traffic, queries until an alarm, success before it.

Each attack runs to its end once, on a server of its own that closes nobody, while every monitor watches the same
queries: all of an attack on one image under one account, and under a new account every 49 queries, one less than the
neighbours that the stateful monitor looks at. Thresholds are set on one half of the embedded images, false alarms
measured on the other. What is counted for an image: whether the attack broke it within the budget; whether and when the
first alarm came; whether it was broken before.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from robustgen.service.monitors import Monitor, make_monitor
from robustgen.service.traffic import Traffic, calibrate
from robustgen.statistics import proportion
from robustgen.threat import ThreatModel

ATTACKS = ("square", "nes", "hopskipjump", "nes-blind")  # the last knows of monitors
ACCOUNTS = (None, 49)  # queries after which the attacker opens a new account


class Watched(nn.Module):
    """Passes images on, shows each to every monitor under every policy of accounts, and notes the first alarms."""

    def __init__(self, classifier: nn.Module, monitors: Sequence[Monitor]) -> None:
        super().__init__()
        self.classifier = classifier
        self.watching = [(m.kind, every, m.fresh()) for m in monitors for every in ACCOUNTS]
        self.first: dict[tuple[str, int | None], int] = {}
        self.sent = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        for image in x:
            for kind, every, monitor in self.watching:
                account = "" if every is None else str(self.sent // every)
                if monitor.see(account, image):
                    self.first.setdefault((kind, every), self.sent + 1)
            self.sent += 1
        logits: Tensor = self.classifier(x)
        return logits


def measure(
    text: str, classifier: Classifier, monitors: Sequence[Monitor], x: Tensor, y: Tensor, threat: ThreatModel,
    budget: int,
) -> dict[str, Any]:  # fmt: skip
    """Rows for each monitor and policy of accounts, over the images one by one."""
    attack = parse_attack(text)
    assert isinstance(attack, AnswersOnly)
    seen: list[tuple[engine.Outcome, Watched]] = []
    for k in range(len(x)):
        watched, found = Watched(classifier, monitors), list[engine.Outcome]()
        with strict_float32():
            engine.run(
                attack.limited(budget), Oracle(watched), Judge(classifier, threat),
                lambda ids: (x[list(ids)], y[list(ids)]), [k], threat, seed=0, batch_size=1, finish=found.append,
            )  # fmt: skip
        seen.append((found[0], watched))
    kinds = {m.kind: None for m in monitors}
    return {"rows": [_row(text, kind, every, seen) for kind in kinds for every in ACCOUNTS]}


def _row(
    text: str, kind: str, every: int | None, seen: Sequence[tuple[engine.Outcome, Watched]]
) -> dict[str, Any]:  # fmt: skip
    n = len(seen)
    alarms = [watched.first.get((kind, every)) for _, watched in seen]
    caught = [at for at in alarms if at is not None]
    unseen = [o.broken and at is None for (o, _), at in zip(seen, alarms, strict=True)]
    return {
        "attack": text, "monitor": kind, "new_account_every": every, "images": n,
        "success_unwatched": asdict(proportion(sum(o.broken for o, _ in seen), n)),
        "detected": asdict(proportion(len(caught), n)),
        "median_queries_until_alarm": statistics.median_low(caught) if caught else None,
        "success_before_alarm": asdict(proportion(sum(unseen), n)),
        "queries": [watched.sent for _, watched in seen], "alarms_at": alarms,
    }  # fmt: skip


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classifier", default="fmnist-standard")
    parser.add_argument("--threat", default="linf:0.05")
    parser.add_argument("--n", type=int, default=15, help="the last images; misclassified ones are left out")
    parser.add_argument("--budget", type=int, default=150, help="queries for an image")
    parser.add_argument("--false-alarms", type=float, default=0.001, help="share of honest queries")
    parser.add_argument("--accounts", type=int, default=10, help="honest accounts")
    parser.add_argument("--work", type=Path, default=Path("runs") / "monitor", help="for what is done already")
    parser.add_argument("--seconds", type=float, help="no attack begins after so many; the same command goes on")
    parser.add_argument("--dry", action="store_true", help="store nothing")
    options = parser.parse_args()
    tune_process()
    piece = Pieces(options.work, options.seconds)
    classifier, dataset = robustgen.load_classifier(options.classifier), robustgen.load_data("fmnist-test-1k")
    x, y = dataset.batch(range(len(dataset) - options.n, len(dataset)))
    with torch.no_grad():
        right = classifier(x).argmax(1) == y
    honest, traffic = range(len(dataset) - options.n), Traffic(accounts=options.accounts)
    monitors, tables = [], []
    for made in (make_monitor("stateful"), make_monitor("blacklight", key=0)):
        monitor, table = calibrate(made, dataset, honest, rate=options.false_alarms, traffic=traffic)
        monitors.append(monitor)
        tables.append(table)
        print(table["monitor"], table["held_out"], flush=True)
    threat, rows = ThreatModel.parse(options.threat), list[dict[str, Any]]()
    for text in ATTACKS:
        rows += piece(text, measure, text, classifier, monitors, x[right], y[right], threat, options.budget)["rows"]
    if not options.dry:
        what = {"classifier": options.classifier, "threat": options.threat, "budget": options.budget}
        print(store("monitor", {**what, "honest": tables, "rows": rows}))


if __name__ == "__main__":
    main()
