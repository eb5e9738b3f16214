"""`robustgen detector eval`: average precision and recall of a detector on scenes as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.detectors.average_precision import average_precision, match, recall, working_point
from robustgen.detectors.detector import Detector, detect, load_detector
from robustgen.detectors.picture import Shown, draw_grid
from robustgen.detectors.scenes import Scene, Scenes
from robustgen.detectors.source import load_scenes
from robustgen.durable import disk_errors
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.judge import strict_float32

__all__ = ["box_texts", "clean_lines", "measure_detections", "usable_detector"]

_ROWS = 64  # scenes held at once
_PICTURED = 12
_COLUMNS = 4
_PROBED = 4  # scenes on which a detector is tried before any work


def measure_detections(
    spec: str, scenes_name: str, *, n: int | None, picture: Path | None, seed: int, weights: Path | None,
    data_dir: Path | None, device: str,
) -> dict[str, Any]:  # fmt: skip
    """AP and recall, and a picture of the first scenes.

    Args:
        spec, weights: as for `load_detector`.
        scenes_name, n, data_dir, seed: as for `load_scenes`; scenes to measure on.
        picture: where a PNG goes; None for none.
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        ap50, ap, recall (at IoU 0.5, at the score `threshold` that gives the largest F1), objects, n, and of what.

    Raises:
        SpecError, ArtifactError: the request cannot be met.
    """
    if n is not None and n < 1:
        raise SpecError(f"--n must be >= 1, got {n}.")
    where, scenes = pick_device(device), load_scenes(scenes_name, "test", count=n, seed=seed, data_dir=data_dir)
    detector = usable_detector(load_detector(spec, weights=weights).to(where), scenes, where)
    found: list[dict[str, Tensor]] = []
    truths: list[dict[str, Tensor]] = []
    with strict_float32():
        for at in range(0, len(scenes), _ROWS):
            held = scenes.take(range(at, min(at + _ROWS, len(scenes))))
            found += detect(detector.network, [scene.image.to(where) for scene in held], detector.card.name)
            truths += [scene.target() for scene in held]
    matched = match(found, truths)
    least, ap = working_point(matched), average_precision(matched)
    if picture is not None:
        names = detector.card.class_names or scenes.class_names
        tiles: list[Shown] = [
            (scene.image, *box_texts(row, least, names), scene.boxes)
            for scene, row in zip(scenes.take(range(min(_PICTURED, len(scenes)))), found, strict=False)
        ]
        with disk_errors(picture):
            draw_grid([tiles[k : k + _COLUMNS] for k in range(0, len(tiles), _COLUMNS)], [""] * _COLUMNS).save(picture)
    return {
        "detector": detector.card.name, "weights_sha256": detector.weights_sha256, "scenes": scenes.name,
        "scenes_sha256": scenes.digest(), "n": len(scenes), "seed": seed, "threshold": least,
        "objects": sum(len(truth["labels"]) for truth in truths), "ap50": float(ap[0]), "ap": float(ap.mean()),
        "recall": recall(matched, least),
    }  # fmt: skip


def clean_lines(result: dict[str, Any]) -> list[str]:
    """For reading."""
    return [
        f"detector  {result['detector']}  (weights {result['weights_sha256'][:12]})",
        f"scenes    {result['n']} of {result['scenes']}, {result['objects']} objects",
        f"AP50      {100 * result['ap50']:.2f} %",
        f"AP        {100 * result['ap']:.2f} %",
        f"recall    {100 * result['recall']:.2f} % at IoU 0.5, score {result['threshold']:.2f} and more",
    ]


def usable_detector(detector: Detector, scenes: Scenes, device: torch.device) -> Detector:
    """The detector, if it can be asked about these scenes.

    Raises:
        SpecError: images of other channels, or an answer that is not of torchvision's format.
    """
    card = detector.card
    if card.channels is not None and card.channels != scenes.channels:
        raise SpecError(
            f"{card.name} takes images of {card.channels} channels, the scenes of {scenes.name} have "
            f"{scenes.channels}; name others."
        )
    probe: list[Scene] = scenes.take(range(min(_PROBED, len(scenes))))
    detect(detector.network, [scene.image.to(device) for scene in probe], card.name)
    return detector


def box_texts(row: dict[str, Tensor], least: float, names: tuple[str, ...]) -> tuple[Tensor, list[str]]:
    """The boxes (N, 4) that score at least so much, and a text each: class and score."""
    kept = row["scores"] >= least
    labels, scores = row["labels"][kept].tolist(), row["scores"][kept].tolist()
    texts = [f"{names[k] if 0 <= k < len(names) else k} {s:.2f}" for k, s in zip(labels, scores, strict=True)]
    return row["boxes"][kept], texts
