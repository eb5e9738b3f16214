"""One process with two threads against two processes with one thread each (torchrun), in turn; same records."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from robustgen.benchmarks.harness import store

CASES = (("fmnist-at", "rapid", 1000), ("fmnist-at", "standard", 100), ("cifar10-at", "rapid", 300))
WAYS = {
    "1 process, 2 threads": ([], "2"),
    "2 processes, 1 thread each": (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], "1"),
}


def run(way: str, case: tuple[str, str, int], data_dir: Path | None, out: Path) -> dict[str, Any]:
    """One evaluation by the command line: seconds with and without starting, and what it left."""
    classifier, plan, n = case
    launcher, threads = WAYS[way]
    command = [sys.executable, *launcher, "-m", "robustgen", "eval", classifier, "--plan", plan, "-n", str(n)]
    command += ["--precision", "bfloat16+channels_last+folded", "--out", str(out)]
    command += ["--data-dir", str(data_dir)] if data_dir else []
    begun = time.perf_counter()
    subprocess.run(  # noqa: S603 -- words written here
        command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": threads}
    )
    wall = time.perf_counter() - begun
    clock = json.loads((out / "seconds.json").read_text(encoding="utf-8"))
    return {"wall": wall, "seconds": sum(clock.values()), "examples": (out / "examples.jsonl").read_bytes()}


def main() -> None:
    """Three pairs a case; counts examples whose line differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for case in CASES:
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(options.pairs):
            for way, results in found.items():
                with tempfile.TemporaryDirectory() as folder:
                    results.append(run(way, case, options.data_dir, Path(folder) / "run"))
        one, two = (results[0]["examples"].splitlines() for results in found.values())
        verdicts = [[json.loads(line)["robust"] for line in lines] for lines in (one, two)]
        rows.append(
            {
                "classifier": case[0], "plan": case[1], "n": case[2],
                "wall": {way: [r["wall"] for r in results] for way, results in found.items()},
                "seconds": {way: [r["seconds"] for r in results] for way, results in found.items()},
                "lines_that_differ": sum(a != b for a, b in zip(one, two, strict=True)),
                "verdicts_that_differ": sum(a != b for a, b in zip(*verdicts, strict=True)),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    what = "wall: with the start of the processes; seconds: the run itself, of the slower rank."
    print(store("ranks", {"what": what, "rows": rows}))


if __name__ == "__main__":
    main()
