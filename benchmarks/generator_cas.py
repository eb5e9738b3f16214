"""Classification accuracy score: a small network trained on generated images only, beside one trained on real ones.

    python -m robustgen.benchmarks.generator_cas FILE.npz [FILE.npz ...] [--real 60000]

Every training has the same number of steps, whatever the number of images. Rows are added to results/generator_cas.json
by file name.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustgen.benchmarks.harness import RESULTS, store
from robustgen.data import load_data
from robustgen.environment import tune_process
from robustgen.generator.cas import classification_accuracy_score
from robustgen.generator.generated import read_generated, read_images
from robustgen.progress import Lines


def main() -> None:
    """Train, test, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--real", type=int, nargs="*", default=[], help="train on the first so many real images")
    parser.add_argument("--data", default="fashion-mnist")
    given = parser.parse_args()
    tune_process()
    test = load_data(given.data)
    held = RESULTS / "generator_cas.json"
    rows: dict[str, Any] = json.loads(held.read_text())["rows"] if held.exists() else {}
    for path in given.files:
        images, labels = read_generated(path)
        if labels is None:
            raise SystemExit(f"{path}: has no labels.")
        rows[path.stem] = _row(images, labels, test)
        with np.load(path) as file:
            rows[path.stem]["provenance"] = json.loads(str(file["provenance"]))
        print(path.stem, rows[path.stem]["accuracy"], flush=True)
        _store(given.data, rows)
    if given.real:
        train = load_data(given.data, split="train")
        images, labels = read_images(train), torch.from_numpy(train.labels)
        for n in given.real:
            rows[f"real {n}"] = _row(images[:n], labels[:n], test)
            print(f"real {n}", rows[f"real {n}"]["accuracy"], flush=True)
            _store(given.data, rows)


def _store(data: str, rows: dict[str, Any]) -> None:
    print(store("generator_cas", {"what": f"tested on the test images of {data}", "rows": rows}))


def _row(images: torch.Tensor, labels: torch.Tensor, test: Any) -> dict[str, Any]:
    return asdict(classification_accuracy_score(images, labels, test, progress=Lines(30)))


if __name__ == "__main__":
    main()
