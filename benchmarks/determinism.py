"""How often a verdict depends on batch size or number of threads: the same run in several ways, line by line."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

import robustgen
from robustgen.benchmarks.harness import in_fresh_process, store
from robustgen.runs import read_examples
from robustgen.witnesses import read_witnesses

WAYS = ((250, 2), (250, 1), (64, 2), (1, 1))  # batch size, threads
CASES = (
    ("fmnist-at", "rapid", "float32", 200), ("fmnist-at", "rapid", "bfloat16+channels_last+folded", 200),
    ("fmnist-standard", "rapid", "float32", 200), ("fmnist-at-l2", "rapid", "bfloat16+channels_last+folded", 200),
)  # fmt: skip


def measure(case: tuple[str, str, str, int], batch_size: int, threads: int) -> dict[int, tuple[str, bytes]]:
    """Line and witness by example id."""
    classifier, plan, precision, n = case
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        robustgen.evaluate(classifier, plan=plan, n=n, precision=precision, batch_size=batch_size, out=run)
        images = {id_: image.numpy().tobytes() for id_, image in read_witnesses(run)}
        return {e.id: ("robust" if e.robust else "broken", images.get(e.id, b"")) for e in read_examples(run)}


def compare(case: tuple[str, str, str, int]) -> dict[str, Any]:
    """How many verdicts and images differ from those of the first way."""
    first, *others = (in_fresh_process(measure, case, *way) for way in WAYS)
    row: dict[str, Any] = {"classifier": case[0], "plan": case[1], "precision": case[2], "n": case[3], "ways": []}
    for (batch_size, threads), other in zip(WAYS[1:], others, strict=True):
        verdicts = sum(other[id_][0] != first[id_][0] for id_ in first)
        images = sum(other[id_][1] != first[id_][1] for id_ in first)
        row["ways"].append({"batch": batch_size, "threads": threads, "verdicts": verdicts, "images": images})
    return row


def main() -> None:
    """Measure, print, store."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = []
    for case in CASES:
        rows.append(compare(case))
        print(rows[-1], flush=True)
    what = f"against batch {WAYS[0][0]} on {WAYS[0][1]} threads."
    print(store("determinism", {"what": what, "rows": rows}))


if __name__ == "__main__":
    main()
