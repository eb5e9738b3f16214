"""How far AutoAttack agrees with itself: the stored verdicts of seed 0 against another seed, on the same images."""

from __future__ import annotations

import argparse
import json
import logging

import robustgen
from robustgen.benchmarks.harness import RESULTS, reference_verdicts, store
from robustgen.spec import expand_ids
from robustgen.threat import ThreatModel


def main() -> None:
    """One row of speed-autoattack.json, again with seed 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classifier", default="fmnist-at-l2")
    parser.add_argument("--threat", default="l2:1.5")
    options = parser.parse_args()
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    rows = json.loads((RESULTS / "speed-autoattack.json").read_text(encoding="utf-8"))["rows"]
    row = next(
        r for r in rows
        if (r["classifier"], r["threat"], r["precision"]) == (options.classifier, options.threat, "auto")
    )  # fmt: skip
    n, first = row["compared"], set(expand_ids(row["autoattack"]["robust_ids"]))
    classifier = robustgen.load_classifier(options.classifier)
    x, y = robustgen.load_data(row["data"]).batch(range(n))
    verdicts, seconds = reference_verdicts(classifier, x, y, ThreatModel.parse(options.threat), seed=1)
    second = {id_ for id_, robust in enumerate(verdicts) if robust}
    result = {
        "classifier": options.classifier, "threat": options.threat, "n": n, "seconds": seconds,
        "robust": [len(first) / n, len(second) / n], "agreement": 1 - len(first ^ second) / n,
        "differ": sorted(first ^ second),
    }  # fmt: skip
    print(result)
    print(store("self_agreement", {"rows": [result]}))


if __name__ == "__main__":
    main()
