"""Success against queries of all attacks that see answers only, on a bundled classifier: curves and pictures.

Runs of `robustgen eval --plan queries`, kept below --work, with which the same command goes on. The pictures go to
docs/query-curves-NORM.png.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import robustgen
from robustgen.benchmarks.harness import DOCS, store
from robustgen.environment import tune_process
from robustgen.plot import save_figure
from robustgen.plot_queries import draw_queries
from robustgen.progress import Lines
from robustgen.threat import ThreatModel

CLASSIFIER, N = "fmnist-standard", 50
THREATS = ("linf:0.05",)


def measure(work: Path, threat: str) -> dict[str, Any]:
    """One run, or what is left of it, and its picture."""
    norm = ThreatModel.parse(threat).norm
    record = robustgen.evaluate(
        CLASSIFIER, "fmnist-test-1k", threat, plan="queries", n=N, out=work / norm, precision="float32",
        progress=Lines(),
    )  # fmt: skip
    assert record.queries is not None
    save_figure(draw_queries([record]), DOCS / f"query-curves-{norm}.png")
    return {"threat": threat, "protocol": record.spec["protocol"], "queries": asdict(record.queries)}


def main() -> None:
    """Measure, draw, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs") / "query_curves")
    options = parser.parse_args()
    tune_process()
    rows = [measure(options.work, threat) for threat in THREATS]
    what = f"{CLASSIFIER}, the first {N} embedded images, at most 1,000 queries of each attack for each"
    print(store("query_curves", {"what": what, "classifier": CLASSIFIER, "rows": rows}))


if __name__ == "__main__":
    main()
