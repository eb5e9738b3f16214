"""Success of patches against their size: one patch for all images, and one for each image, on bundled classifiers.

For all images: trained on 2,000 training images of Fashion-MNIST as `robustgen patch train` does, measured on test
images beside patches of noise as `patch eval` does; at the place that training found best, and of one classifier also
anywhere. No target: any wrong class counts. For each image: Patch-PGD under `--threat patch:SxS` on the first
of these test images that are embedded. One of the trained patches is measured in every cell of angle and scale too,
and drawn in docs/patch-grid.png. What is done is kept in the folder of `--work`, and not done again.

Needs Fashion-MNIST below --data-dir.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import robustgen
from robustgen.benchmarks.harness import DOCS, Pieces, store
from robustgen.environment import tune_process
from robustgen.patch.design import PatchRequest
from robustgen.patch.heat import ANGLES, SCALES, measure_grid, parse_axis
from robustgen.patch.measure import MeasureRequest, measure_patch
from robustgen.patch.train import train_patch
from robustgen.progress import Silent
from robustgen.statistics import proportion

CLASSIFIERS = ("fmnist-standard", "fmnist-at", "fmnist-at-l2")
SIZES = (4, 6, 8, 10, 12)
TRAINED: dict[str, Any] = {"steps": 150, "batch_size": 64}
ANYWHERE = "fmnist-standard"  # the classifier whose patches are trained and measured at random places too
GRID = ("fmnist-standard", 12, "optimised")  # which one is measured in every cell
SEEN = 600  # test images, the first
EACH = 30  # images with a patch of their own
ATTACK = "patch-pgd:places=32:keep=2:steps=15"


def universal(work: Path, classifier: str, size: int, location: str, data_dir: Path) -> dict[str, Any]:
    """Train, or go on, and measure."""
    folder = work / f"{classifier}-{size}-{location}"
    request = PatchRequest(
        classifier=classifier, size=str(size), location=location, data="fashion-mnist", data_dir=data_dir, **TRAINED
    )
    train_patch(request, out=folder, progress=Silent())
    asked = MeasureRequest(folder=folder, n=SEEN, data_dir=data_dir)
    found = measure_patch(asked, device="auto", progress=Silent())
    kept = ("success", "random_success", "n", "transforms", "location")
    return {"classifier": classifier, "size": size, **{key: found[key] for key in kept}}


def of_each(work: Path, classifier: str, size: int) -> dict[str, Any]:
    """Success of a patch for each image, over those that are classified right."""
    record = robustgen.evaluate(
        classifier, "fmnist-test-1k", f"patch:{size}x{size}", attacks=ATTACK, n=EACH, out=work / f"{classifier}-{size}"
    )
    right = round(record.clean_accuracy.value * record.n)
    robust = round(record.robust_accuracy.value * record.n)
    return {"classifier": classifier, "size": size, "n": right, "success": asdict(proportion(right - robust, right))}


def grid(work: Path, data_dir: Path) -> dict[str, Any]:
    """Success against angle and scale of one patch; the picture goes to the documents."""
    classifier, size, location = GRID
    folder = work / f"{classifier}-{size}-{location}"
    axes = parse_axis("angles", ANGLES, positive=False), parse_axis("scales", SCALES, positive=True)
    asked = MeasureRequest(folder=folder, n=SEEN, data_dir=data_dir)
    found = measure_grid(asked, *axes, device="auto", progress=Silent())
    shutil.copyfile(folder / found["picture"], DOCS / "patch-grid.png")
    return {key: found[key] for key in ("classifier", "size", "target", "n", "angles", "scales", "cells")}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs") / "patch_sizes")
    parser.add_argument("--seconds", type=float, help="no piece begins after so many; the same command goes on")
    options = parser.parse_args()
    tune_process()
    piece = Pieces(options.work, options.seconds)
    pairs = [(classifier, size) for size in SIZES for classifier in CLASSIFIERS]
    asked = [(*pair, "optimised") for pair in pairs] + [(ANYWHERE, size, "random") for size in SIZES]
    trained = [
        piece(f"universal-{name}-{size}-{place}", universal, options.work, name, size, place, options.data_dir)
        for name, size, place in asked
    ]
    each = [piece(f"each-{classifier}-{size}", of_each, options.work, classifier, size) for classifier, size in pairs]
    cells = piece("grid", grid, options.work, options.data_dir)
    what = f"{TRAINED['steps']} steps of {TRAINED['batch_size']} images; for each image {ATTACK}"
    print(store("patch_sizes", {"what": what, "universal": trained, "each": each, "grid": cells}))


if __name__ == "__main__":
    main()
