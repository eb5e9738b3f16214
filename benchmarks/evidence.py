"""What the evidence of a default run costs: bytes of the witnesses against raw float32, seconds of `verify`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import robustgen
from robustgen.benchmarks.harness import in_fresh_process, store
from robustgen.environment import tune_process
from robustgen.verify import verify_run
from robustgen.witnesses import read_witnesses

CASES = (("fmnist-at", "rapid"), ("fmnist-at", "strong"), ("fmnist-standard", "rapid"), ("fmnist-at-l2", "rapid"))


def measure(classifier: str, plan: str) -> dict[str, Any]:
    """One run over the 1,000 embedded images, and what is left of it."""
    tune_process()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        begun = time.perf_counter()
        record = robustgen.evaluate(classifier, plan=plan, out=run)
        seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        found = verify_run(run)
        verified = time.perf_counter() - begun
        raw = sum(4 * image.numel() for _, image in read_witnesses(run))
        packed = sum(path.stat().st_size for path in (run / "witnesses").iterdir())
        size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert found.holds, found.wrong
    return {
        "classifier": classifier, "plan": plan, "threat": record.spec["threat"], "n": record.n,
        "witnesses": sum(a.broken for a in record.attacks), "raw_bytes": raw, "packed_bytes": packed,
        "run_bytes": size, "run_seconds": seconds, "verify_seconds": verified,
    }  # fmt: skip


def main() -> None:
    """Measure each case in a process of its own, print, store."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = [in_fresh_process(measure, classifier, plan) for classifier, plan in CASES]
    for row in rows:
        print(row)
    what = "1,000 embedded images; packed against float32; `verify` in the same process, loading included."
    print(store("evidence", {"what": what, "rows": rows}))


if __name__ == "__main__":
    main()
