"""Our plans against AutoAttack standard (pyautoattack): verdict by verdict, and second by second.

One row a classifier and threat model. Both sides take turns, each time in a fresh process, as their users run them: a
piece of AutoAttack's images, one of our plans, the next piece, the next plan; importing and, for AutoAttack, loading do
not count. Images beyond `--reference` are left out by AutoAttack, which takes seconds for each, and serve to compare
our plans with each other; `standard` is timed without them, for the quick plans AutoAttack's seconds are scaled to all
images. Rows are stored as they are done; a row that is there already is measured again only with `--again`, and even
then the verdicts of `standard` beyond `--reference`, which are not timed, are kept while plan and weights are the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import robustgen
from robustgen.benchmarks.harness import RESULTS, in_fresh_process, reference_verdicts, store
from robustgen.cards import Card, bundled_cards
from robustgen.environment import describe_environment, tune_process
from robustgen.example import ExampleRecord
from robustgen.record import RunRecord
from robustgen.runs import read_examples
from robustgen.spec import compact_ids, expand_ids
from robustgen.threat import ThreatModel

PLANS = ("rapid", "strong", "standard")
NAME = "speed-autoattack"


class Side:
    """One of our plans: which ids it leaves robust, and its seconds."""

    def __init__(self, plan: str) -> None:
        self.plan = plan
        self.robust: set[int] = set()
        self.clean: dict[int, tuple[int, int]] = {}  # id: label and clean prediction
        self.seconds: list[float] = []
        self.records: list[RunRecord] = []

    def run(self, options: argparse.Namespace, ids: Sequence[int]) -> None:
        """Evaluate these examples, loading and writing included."""
        if not ids:
            return
        record, examples, seconds = in_fresh_process(_evaluate, options, self.plan, list(ids))
        self.seconds.append(seconds)
        self.records.append(record)
        self.robust |= {example.id for example in examples if example.robust}
        self.clean |= {example.id: (example.label, example.clean_prediction) for example in examples}

    def keep(self, row: dict[str, Any] | None, ids: range) -> str | None:
        """Take verdicts of a stored row where it has them for these ids and the same attacks; when they were found."""
        if not ids or row is None or row["n"] < ids.stop:
            return None
        spec, held = self.records[0].spec, row["plans"][self.plan]
        if (row["weights_sha256"], held["protocol"]) != (spec["weights_sha256"], spec["protocol"]):
            return None
        self.robust |= set(expand_ids(held["robust_ids"])) & set(ids)
        return str(held.get("beyond", row["measured"]))

    def summary(self, reference: set[int], compared: Sequence[int], reference_seconds: float, n: int) -> dict[str, Any]:
        """What the table says of this plan."""
        mine = self.robust & set(compared)
        return {
            "robust_ids": compact_ids(sorted(self.robust)),
            "robust": len(self.robust) / n,
            "robust_where_compared": len(mine) / len(compared),
            "agreement": 1 - len(mine ^ reference) / len(compared),
            "only_ours_broke": sorted(reference - mine),
            "only_autoattack_broke": sorted(mine - reference),
            "seconds": self.seconds,
            "ratio": reference_seconds / len(compared) * self.records[0].n / self.seconds[0],
            "forwards": sum(record.forwards for record in self.records),
            "backwards": sum(record.backwards for record in self.records),
            "form": self.records[0].spec["precision"],
            "flags": sorted({flag for record in self.records for flag in record.flags}),
            "protocol": self.records[0].spec["protocol"],
        }


def _evaluate(options: argparse.Namespace, plan: str, ids: list[int]) -> tuple[RunRecord, list[ExampleRecord], float]:
    """One evaluation: its record, its rows and its seconds."""
    tune_process()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        begun = time.perf_counter()
        record = robustgen.evaluate(
            options.classifier, options.data, options.threat, plan=plan, ids=ids, out=run,
            data_dir=options.data_dir, precision=options.precision,
        )  # fmt: skip
        seconds = time.perf_counter() - begun
        return record, read_examples(run), seconds


def _reference(options: argparse.Namespace, ids: list[int]) -> tuple[list[bool], float]:
    """AutoAttack's verdicts and seconds, without what `tune_process` sets."""
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    x, y = robustgen.load_data(options.data, data_dir=options.data_dir).batch(ids)
    classifier = robustgen.load_classifier(options.classifier)
    return reference_verdicts(classifier, x, y, ThreatModel.parse(options.threat))


def measure(options: argparse.Namespace, held: dict[str, Any] | None) -> dict[str, Any]:
    """One row of the table; `held` is the one that is stored."""
    classifier = robustgen.load_classifier(options.classifier)
    compared, beyond = range(options.reference), range(options.reference, options.n)
    third = -(-options.reference // (250 * len(PLANS))) * 250  # whole batches of AutoAttack's, a piece before each plan
    reference: set[int] = set()
    seconds: list[float] = []
    sides = [Side(plan) for plan in PLANS]
    for k, side in enumerate(sides):
        ids = compared[k * third : (k + 1) * third]
        if ids:
            verdicts, spent = in_fresh_process(_reference, options, list(ids))
            reference |= {id_ for id_, robust in zip(ids, verdicts, strict=True) if robust}
            seconds.append(spent)
        side.run(options, compared if side.plan == "standard" else range(options.n))
        print(side.plan, "robust", len(side.robust), "of", side.records[0].n, f"{side.seconds[0]:.1f} s", flush=True)
    total = sum(seconds)
    machine = describe_environment()
    measured = f"{datetime.now(UTC).date().isoformat()}, {machine['processor']}, {machine['threads']} threads"
    standard = sides[PLANS.index("standard")]
    kept = standard.keep(held, beyond)
    if kept is None:
        standard.run(options, beyond)
    plans = {side.plan: side.summary(reference, compared, total, options.n) for side in sides}
    plans["standard"]["beyond"] = kept or measured
    return {
        "measured": measured,
        "classifier": Card.load(Path(options.classifier)).name if "/" in options.classifier else options.classifier,
        "weights_sha256": classifier.weights_sha256,
        "data": options.data, "threat": options.threat, "precision": options.precision,
        "n": options.n, "compared": options.reference,
        "clean": sum(a == b for a, b in (sides[0].clean[id_] for id_ in compared)) / len(compared),
        "autoattack": {
            "robust": len(reference) / len(compared), "robust_ids": compact_ids(sorted(reference)), "seconds": seconds,
        },
        "plans": plans,
    }  # fmt: skip


def show(row: dict[str, Any]) -> None:
    """One row, for people."""
    found = row["autoattack"]
    print(f"{row['classifier']} {row['threat']}: AutoAttack {found['robust']:.4f}, {sum(found['seconds']):.0f} s")
    for plan, p in row["plans"].items():
        print(
            f"  {plan:<9} {p['robust_where_compared']:.4f} (all {p['robust']:.4f}), agreement {p['agreement']:.4f}, "
            f"{p['seconds'][0]:.1f} s, ratio {p['ratio']:.1f}, flags {p['flags']}, ours only {p['only_ours_broke']}, "
            f"AutoAttack only {p['only_autoattack_broke']}"
        )


def write_card(row: dict[str, Any]) -> None:
    """Put the figures into the card of a bundled classifier, in place of earlier ones on test images."""
    path = bundled_cards()[row["classifier"]]
    card = Card.load(path)
    today = datetime.now(UTC).date().isoformat()
    common = {"n": row["compared"], "data": row["data"], "threat": row["threat"], "date": today}
    found, ours = row["autoattack"]["robust"], row["plans"]["rapid"]
    protocol = ours["protocol"].partition(":")[0]
    measured = [
        {"metric": "test clean accuracy", "value": row["clean"], "protocol": "float32", **common},
        {"metric": "test robust accuracy", "value": found, "protocol": "pyautoattack standard", **common},
        {"metric": "test robust accuracy", "value": ours["robust_where_compared"], "protocol": protocol, **common},
    ]
    kept = [figure for figure in card.figures if not str(figure["metric"]).startswith("test ")]
    replace(card, figures=(*kept, *measured)).save(path)


def main() -> None:
    """Measure what is missing, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classifier", default="fmnist-at")
    parser.add_argument("--data", default="fmnist-test-1k")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--threat", default="linf:0.1")
    parser.add_argument("--n", type=int, default=1000, help="examples for our plans")
    parser.add_argument("--reference", type=int, default=1000, help="the first of them that AutoAttack attacks as well")
    parser.add_argument("--precision", default="auto", help="of our plans: auto or float32")
    parser.add_argument("--again", action="store_true", help="measure again what is stored")
    parser.add_argument("--write-card", action="store_true", help="put the figures into the bundled card")
    options = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    name = Path(options.classifier).stem
    key = (name, options.data, options.threat, options.precision)
    held = [r for r in rows if (r["classifier"], r["data"], r["threat"], r["precision"]) == key]
    if options.again or not held:
        rows = [*(r for r in rows if r not in held), measure(options, held[0] if held else None)]
        store(NAME, {"rows": rows}, module="speed.autoattack")
    for row in rows:
        show(row)
    if options.write_card:
        write_card(next(r for r in rows if (r["classifier"], r["data"], r["threat"], r["precision"]) == key))


if __name__ == "__main__":
    main()
