"""A bundled classifier against the one that it is meant to beat: both attacked on all test images, then a paired test.

Both runs lie below --work and go on when the same command is typed again.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_rel

import robustgen
from robustgen.benchmarks.harness import store
from robustgen.environment import tune_process
from robustgen.progress import Lines
from robustgen.record import RunRecord
from robustgen.runs import read_examples
from robustgen.statistics import mcnemar


def paired(first: set[int], second: set[int], n: int) -> dict[str, Any]:
    """What the ids of n that each side has right say of the difference of their shares, second less first.

    Its 95 % interval is that of scipy's paired t-test, `p` that of McNemar's.
    """
    a, b = (np.array([id_ in side for id_ in range(n)], dtype=np.float64) for side in (first, second))
    low, high = ttest_rel(b, a).confidence_interval()
    only_first, only_second = len(first - second), len(second - first)
    return {
        "only_first": only_first, "only_second": only_second, "difference": (only_second - only_first) / n,
        "interval": [float(low), float(high)], "p": mcnemar(only_first, only_second),
    }  # fmt: skip


def main() -> None:
    """Attack, compare, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", default="fmnist-at")
    parser.add_argument("--second", default="fmnist-at-wide")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--threat", default="linf:0.1")
    parser.add_argument("--plan", default="rapid")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--data-dir", type=Path, help="where the data set lies; by default $ROBUSTGEN_DATA")
    parser.add_argument("--work", type=Path, default=Path("runs") / "retrained")
    options = parser.parse_args()
    tune_process()

    def attacked(name: str) -> RunRecord:
        record: RunRecord = robustgen.evaluate(
            name, options.data, options.threat, plan=options.plan, n=options.n, data_dir=options.data_dir,
            out=options.work / Path(name).stem, progress=Lines(),
        )  # fmt: skip
        return record

    names = (options.first, options.second)
    records = [attacked(name) for name in names]
    examples = [read_examples(options.work / Path(name).stem) for name in names]
    robust = [{e.id for e in rows if e.robust} for rows in examples]
    clean = [{e.id for e in rows if e.clean_prediction == e.label} for rows in examples]
    found = {
        "data": options.data, "threat": options.threat, "plan": options.plan, "n": records[0].n,
        "rows": [
            {"classifier": name, "clean": asdict(r.clean_accuracy), "robust": asdict(r.robust_accuracy),
             "flags": list(r.flags), "protocol": r.spec["protocol"], "seconds": r.seconds}
            for name, r in zip(names, records, strict=True)
        ],
        "clean": paired(clean[0], clean[1], records[0].n), "robust": paired(robust[0], robust[1], records[0].n),
    }  # fmt: skip
    print({key: found[key] for key in ("clean", "robust")})
    print(store("retrained", found))


if __name__ == "__main__":
    main()
