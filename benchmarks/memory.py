"""Peak memory of a whole evaluation at 1,000 and at 10,000 examples, each in a process of its own."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from robustgen.benchmarks.harness import store

SIZES = (1000, 10000)


def measure(n: int, data_dir: Path | None) -> dict[str, Any]:
    """One evaluation by the command line; peak resident memory as the operating system counted it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "robustgen", "eval", "fmnist-at", "--data", "fashion-mnist", "--n", str(n)]
        command += ["--out", f"{folder}/run", *(["--data-dir", str(data_dir)] if data_dir else [])]
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 -- words written here
        seconds = time.perf_counter() - begun
    return {"n": n, "seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def main() -> None:
    """Measure, print, store; the smaller run first, since the peak is that of the largest child so far."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    rows = [measure(n, options.data_dir) for n in SIZES]
    for row in rows:
        print(row)
    what = "`robustgen eval fmnist-at --data fashion-mnist --n N`, the default plan."
    print(store("memory", {"what": what, "rows": rows}))


if __name__ == "__main__":
    main()
