"""Robust accuracy of the bundled classifiers under AutoAttack standard (pyautoattack) and under a plan, same ids.

Minutes on two cores: AutoAttack spends thousands of queries on each image that it cannot break.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import robustgen
from robustgen.benchmarks.harness import store
from robustgen.cards import Card, bundled_cards
from robustgen.classifiers import Classifier
from robustgen.environment import use_available_cores
from robustgen.prepare import DEFAULT_BATCH
from robustgen.record import ExampleRecord
from robustgen.statistics import proportion
from robustgen.threat import ThreatModel


def reference_verdicts(classifier: Classifier, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[list[bool], float]:
    """Which images AutoAttack standard leaves robust, judged again in float32; and its seconds."""
    from pyautoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    begun = time.perf_counter()
    attack = AutoAttack(classifier, device="cpu", eps=threat.eps, norm=norm, seed=0, version="standard")
    x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=DEFAULT_BATCH)
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        robust = (classifier(x).argmax(1) == y) & (classifier(x_adv).argmax(1) == y)
    return robust.tolist(), seconds


def measure(name: str, n: int, eps: float, plan: str, seed: int) -> dict[str, Any]:
    """Both sides on one classifier."""
    x, y = robustgen.load_data("fmnist-test-1k").batch(range(n))
    reference, reference_seconds = reference_verdicts(robustgen.load_classifier(name), x, y, ThreatModel("linf", eps))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        record = robustgen.evaluate(name, "fmnist-test-1k", f"linf:{eps}", plan=plan, n=n, seed=seed, out=run)
        ours = [
            ExampleRecord.from_line(line).robust for line in (run / "examples.jsonl").read_text("utf-8").splitlines()
        ]
    agreement = sum(a == b for a, b in zip(ours, reference, strict=True)) / n
    return {
        "classifier": name,
        "n": n,
        "threat": f"linf:{eps}",
        "plan": record.spec["protocol"],
        "precision": record.spec["precision"],
        "clean": proportion(round(record.clean_accuracy.value * n), n).value,
        "autoattack": proportion(sum(reference), n).value,
        "ours": record.robust_accuracy.value,
        "agreement": agreement,
        "only_autoattack_broke": sum(a and not b for a, b in zip(ours, reference, strict=True)),
        "only_ours_broke": sum(b and not a for a, b in zip(ours, reference, strict=True)),
        "autoattack_seconds": reference_seconds,
        "our_seconds": record.seconds,
    }


def write_card(row: dict[str, Any]) -> None:
    """Put the figures into the classifier's card, in place of earlier ones of the same metrics."""
    path = bundled_cards()[row["classifier"]]
    card = Card.load(path)
    today = datetime.now(UTC).date().isoformat()
    common = {"n": row["n"], "data": "fmnist-test-1k", "threat": row["threat"], "date": today}
    measured = [
        {"metric": "test clean accuracy", "value": row["clean"], "protocol": "float32", **common},
        {"metric": "test robust accuracy", "value": row["autoattack"], "protocol": "pyautoattack standard", **common},
        {"metric": "test robust accuracy", "value": row["ours"], "protocol": row["plan"], **common},
    ]
    kept = [figure for figure in card.figures if not str(figure["metric"]).startswith("test ")]
    replace(card, figures=(*kept, *measured)).save(path)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--plan", default="quick")
    parser.add_argument("--write-cards", action="store_true", help="put the figures into the bundled cards")
    options = parser.parse_args()
    use_available_cores()
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    rows = [measure(name, options.n, 0.1, options.plan, seed=0) for name in ("fmnist-standard", "fmnist-at")]
    for row in rows:
        print({key: value for key, value in row.items() if key not in ("plan", "threat")})
    if options.write_cards:
        for row in rows:
            write_card(row)
    print(store("reference_accuracy", {"rows": rows}))


if __name__ == "__main__":
    main()
