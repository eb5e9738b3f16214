"""A patch that makes objects vanish from the bundled detector, in two sizes and with several seeds; and the picture.

Trained on scenes of one half of the embedded pictures, measured on scenes of the other, by the command's own code. AP
is counted a second time by pycocotools where that is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from robustgen.benchmarks.harness import RESULTS, store
from robustgen.benchmarks.tables import load_result
from robustgen.detectors.average_precision import average_precision, match
from robustgen.detectors.detector import detect, load_detector
from robustgen.detectors.scenes import Scene
from robustgen.detectors.source import DEFAULT_SCENES, load_scenes
from robustgen.durable import replace
from robustgen.environment import tune_process
from robustgen.patch.vanish import train_vanishing
from robustgen.patch.vanish_design import VanishRequest
from robustgen.patch.vanish_measure import VanishMeasureRequest, measure_vanishing
from robustgen.progress import Lines

DETECTOR = "fmnist-detector"
ROWS = ((0.35, 0), (0.5, 0), (0.35, 1), (0.35, 2))  # share of the box, seed
TV, NPS = 0.05, 0.01
PICTURED = ROWS[0]  # whose picture is kept
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "vanishing.png"


def measured(share: float, seed: int, steps: int, n: int) -> dict[str, Any]:
    """One patch: what it was trained with, and all that `patch eval` measures."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "patch"
        request = VanishRequest(detector=DETECTOR, share=share, seed=seed, steps=steps, tv=TV, nps=NPS)
        trained = train_vanishing(request, out=out, device="cpu", progress=Lines(30.0))
        found = measure_vanishing(VanishMeasureRequest(folder=out, n=n), device="cpu", progress=Lines(30.0))
        if (share, seed) == PICTURED:
            replace(PICTURE, (out / found["picture"]).read_bytes())
    kept = ("share", "detector", "weights_sha256", "scenes", "n", "objects", "threshold", "transforms", "conditions",
            "trained_minus_noise")  # fmt: skip
    return {"seed": seed, "steps": steps, "trained_on": trained.spec.count, **{key: found[key] for key in kept}}


def reference(n: int) -> dict[str, Any] | None:
    """Largest difference between our AP and that of pycocotools over its ten thresholds, on clean scenes."""
    if find_spec("pycocotools") is None:
        return None
    scenes = load_scenes(DEFAULT_SCENES, "test", count=n).take(range(n))
    found = detect(load_detector(DETECTOR).network, [scene.image for scene in scenes])
    ours = average_precision(match(found, [scene.target() for scene in scenes]))
    theirs = _by_pycocotools(scenes, found)
    return {
        "n": n, "ours": ours.tolist(), "pycocotools": theirs.tolist(), "largest": float(np.abs(ours - theirs).max())
    }  # fmt: skip


def _by_pycocotools(scenes: list[Scene], found: list[dict[str, Any]]) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """(10,) AP at each threshold."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def boxes(row: Any) -> list[list[float]]:
        corners = row.double().numpy()
        return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()  # type: ignore[no-any-return]

    held = [
        {"image_id": k, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for k, scene in enumerate(scenes)
        for box, label in zip(boxes(scene.boxes), scene.labels.tolist(), strict=True)
    ]
    seen = [
        {"image_id": k, "category_id": label, "bbox": box, "score": score}
        for k, row in enumerate(found)
        for box, label, score in zip(
            boxes(row["boxes"]), row["labels"].tolist(), row["scores"].double().tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {}, "images": [{"id": k} for k in range(len(scenes))],
            "categories": [{"id": k} for k in sorted({entry["category_id"] for entry in held})],
            "annotations": [{"id": k + 1, **entry} for k, entry in enumerate(held)],
        }  # fmt: skip
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(seen), "bbox")
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, -1]  # thresholds x recalls x classes, all areas, 100 boxes
    return np.array(precision.mean((1, 2)))


def main() -> None:
    """Measure what is not stored yet, row by row; print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--n", type=int, default=500, help="scenes to measure on")
    parser.add_argument("--most", type=int, default=len(ROWS), help="rows in this call; the rest later")
    options = parser.parse_args()
    tune_process()
    asked = {"steps": options.steps, "n": options.n, "weights_sha256": load_detector(DETECTOR).weights_sha256}
    held = load_result("vanishing") if (RESULTS / "vanishing.json").is_file() else {"rows": []}
    rows = [row for row in held["rows"] if all(row[key] == value for key, value in asked.items())]
    compared = held["reference"] if rows else None
    missing = [pair for pair in ROWS if pair not in {(row["share"], row["seed"]) for row in rows}]
    for share, seed in missing[: options.most]:
        rows.append(measured(share, seed, options.steps, options.n))
        print(share, seed, {key: cells["recall"] for key, cells in rows[-1]["conditions"].items()}, flush=True)
        compared = compared or reference(options.n)
        print(store("vanishing", {"what": f"{DETECTOR}, TV {TV}, NPS {NPS}", "rows": rows, "reference": compared}))


if __name__ == "__main__":
    main()
