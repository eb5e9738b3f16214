"""`standard` against AutoAttack standard (pyautoattack), verdict by verdict, and `rapid` and `strong` beside both.

One row a classifier and threat model. AutoAttack takes about two seconds an image on two cores, so rows are stored as
they are done, and a row that is there already is kept: delete it to measure it again.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import robustgen
from robustgen.benchmarks.harness import RESULTS, store
from robustgen.benchmarks.reference_accuracy import reference_verdicts
from robustgen.environment import use_available_cores
from robustgen.record import ExampleRecord
from robustgen.threat import ThreatModel

PLANS = ("rapid", "strong", "standard")


def ours(name: str, data: str, data_dir: Path | None, n: int, threat: ThreatModel, plan: str) -> dict[str, Any]:
    """Verdicts and seconds of one of our plans."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        begun = time.perf_counter()
        record = robustgen.evaluate(name, data, threat, plan=plan, n=n, out=run, data_dir=data_dir)
        seconds = time.perf_counter() - begun
        lines = (run / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    robust = [ExampleRecord.from_line(line).robust for line in lines]
    cost = {"forwards": record.forwards, "backwards": record.backwards}
    return {"robust": robust, "seconds": seconds, "flags": list(record.flags), "form": record.spec["precision"], **cost}


def row(name: str, data: str, data_dir: Path | None, n: int, text: str) -> dict[str, Any]:
    """One line of the table."""
    threat = ThreatModel.parse(text)
    x, y = robustgen.load_data(data, data_dir=data_dir).batch(range(n))
    reference, seconds = reference_verdicts(robustgen.load_classifier(name), x, y, threat)
    result: dict[str, Any] = {"classifier": name, "data": data, "threat": text, "n": n, "plans": {}}
    result["autoattack"] = {"robust": sum(reference) / n, "seconds": seconds}
    for plan in PLANS:
        mine = ours(name, data, data_dir, n, threat, plan)
        pairs = list(zip(mine.pop("robust"), reference, strict=True))
        result["plans"][plan] = {
            **mine,
            "robust": sum(a for a, _ in pairs) / n,
            "agreement": sum(a == b for a, b in pairs) / n,
            "only_ours_broke": [k for k, (a, b) in enumerate(pairs) if b and not a],
            "only_autoattack_broke": [k for k, (a, b) in enumerate(pairs) if a and not b],
            "ratio": seconds / mine["seconds"],
        }
    return result


def main() -> None:
    """Measure what is missing, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classifier", default="fmnist-at")
    parser.add_argument("--data", default="fmnist-test-1k")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--threat", default="linf:0.1")
    parser.add_argument("--n", type=int, default=200)
    options = parser.parse_args()
    use_available_cores()
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    path = RESULTS / "conformance.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    key = (options.classifier, options.data, options.threat, options.n)
    if key not in [(r["classifier"], r["data"], r["threat"], r["n"]) for r in rows]:
        rows.append(row(options.classifier, options.data, options.data_dir, options.n, options.threat))
    for r in rows:
        print(r["classifier"], r["threat"], r["n"], "autoattack", r["autoattack"])
        for plan, p in r["plans"].items():
            print("  ", plan, {k: v for k, v in p.items() if k != "flags"}, p["flags"])
    print(store("conformance", {"rows": rows}))


if __name__ == "__main__":
    main()
