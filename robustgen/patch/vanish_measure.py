"""`robustgen patch eval` of a patch against a detector: AP and recall without it, with noise, with grey, with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from robustgen.detectors.average_precision import Matched, average_precision, intervals, match, recall, working_point
from robustgen.detectors.detector import Detector, detect, load_detector
from robustgen.detectors.measure import box_texts, usable_detector
from robustgen.detectors.picture import Shown, draw_grid
from robustgen.detectors.scenes import Scene, Scenes
from robustgen.detectors.source import load_scenes
from robustgen.durable import disk_errors
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.judge import strict_float32
from robustgen.patch.measure import write_result
from robustgen.patch.onto import paste_on_objects
from robustgen.patch.transforms import Transforms
from robustgen.patch.vanish import VanishingPatch, load_vanishing
from robustgen.patch.vanish_design import of_label
from robustgen.progress import Progress
from robustgen.rng import ExampleRng, child_stream
from robustgen.runs import check_weights
from robustgen.statistics import Estimate

__all__ = ["CONDITIONS", "MEASURES", "VanishMeasureRequest", "figures", "measure_vanishing", "vanish_lines"]

CONDITIONS = ("none", "noise", "grey", "trained")
MEASURES = ("ap50", "ap", "recall", "found")
_ROWS = 64  # scenes held at once
_RESAMPLED = 400
_PICTURED = 3
_TITLES = {"none": "no patch", "noise": "uniform noise", "grey": "grey", "trained": "trained"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VanishMeasureRequest:
    """What is to be measured, as typed.

    Attributes:
        folder: of the patch.
        detector: None for the one that it was trained on.
        scenes: None for those that it was trained on, made of other pictures.
        n: how many scenes; None for 500 composed ones, or all of a folder.
        transforms: None for those of the training, in draws of their own.
        seed: of every draw.
    """

    folder: Path
    detector: str | None = None
    scenes: str | None = None
    n: int | None = None
    transforms: str | None = None
    seed: int = 0
    weights: Path | None = None
    data_dir: Path | None = None


def measure_vanishing(request: VanishMeasureRequest, *, device: str, progress: Progress) -> dict[str, Any]:
    """AP and recall on scenes of pictures that the training did not see; kept in the folder as JSON and PNG.

    Four times the same scenes: as they are; with uniform noise, a new one for each object; with a grey patch; with the
    trained one, the last three at the same places under the same transformations. `recall` counts objects found by a
    box of their class, `found` by a box of any, both at IoU 0.5 and at the score that gives the largest F1 without a
    patch. Intervals are those of 400 samples of the scenes, for this one patch.

    Raises:
        SpecError, ArtifactError: the request cannot be met.
    """
    if request.n is not None and request.n < 1:
        raise SpecError(f"--n must be >= 1, got {request.n}.")
    trained, where = load_vanishing(request.folder), pick_device(device)
    transforms = trained.transforms if request.transforms is None else Transforms.parse(request.transforms)
    scenes = load_scenes(
        _data_name(request.scenes or trained.spec.scenes), "test", count=request.n, seed=request.seed,
        data_dir=request.data_dir, seen=trained.seen,
    )  # fmt: skip
    if scenes.channels != len(trained.patch):
        raise SpecError(
            f"{request.folder} is a patch of {len(trained.patch)} channels, the scenes of {scenes.name} have "
            f"{scenes.channels}; name others by --data."
        )
    detector = usable_detector(_detector(request, trained).to(where), scenes, where)
    progress.start("patch eval", len(CONDITIONS))
    found: dict[str, list[dict[str, Tensor]]] = {}
    truths = [scene.target() for scene in scenes.take(range(len(scenes)))]
    with strict_float32():
        for number, condition in enumerate(CONDITIONS, 1):
            patched = _Patched(trained, transforms, condition, request.seed, where)
            found[condition] = _detections(detector, scenes, patched)
            progress.advance(number, _TITLES[condition])
        measured = figures(found, truths, trained.spec.label, request.seed)
        result = {
            "schema": 1, "kind": "vanishing", "patch": trained.card["identity"], "detector": detector.card.name,
            "weights_sha256": detector.weights_sha256, "trained_on": trained.spec.detector,
            "share": trained.spec.share, "label": trained.spec.label, "scenes": scenes.name,
            "scenes_sha256": scenes.digest(), "n": len(scenes), "seed": request.seed, "transforms": str(transforms),
            **measured,
        }  # fmt: skip
        path = write_result(trained.folder, "eval", detector.card.name, result, tuple(measured))
        names = detector.card.class_names or scenes.class_names
        picture = _picture(detector, scenes, [_Patched(trained, transforms, c, request.seed, where) for c in
                                              ("none", "noise", "trained")], measured["threshold"], names)  # fmt: skip
        with disk_errors(trained.folder):
            picture.save(path.with_suffix(".png"))
    return {**result, "picture": path.with_suffix(".png").name}


@dataclass(frozen=True, slots=True)
class _Patched:
    """Scenes under one condition."""

    trained: VanishingPatch
    transforms: Transforms
    condition: str
    seed: int
    device: torch.device

    def images(self, scenes: Sequence[Scene], numbers: Sequence[int]) -> list[Tensor]:
        """(C, H, W) each, with whatever this condition puts on their objects."""
        images = [scene.image.to(self.device) for scene in scenes]
        if self.condition == "none":
            return images
        patch = {"noise": None, "grey": torch.full_like(self.trained.patch, 0.5), "trained": self.trained.patch}
        own = patch[self.condition]
        return paste_on_objects(
            images, [of_label(scene, self.trained.spec.label).to(self.device) for scene in scenes],
            None if own is None else own.to(self.device), self.trained.mask.to(self.device),
            share=self.trained.spec.share, transforms=self.transforms,
            rng=child_stream(ExampleRng.of(self.seed, numbers), "vanishing eval"),
        )  # fmt: skip


def figures(
    found: dict[str, list[dict[str, Tensor]]], truths: Sequence[dict[str, Tensor]], label: int | None, seed: int
) -> dict[str, Any]:
    """Score of the working point, number of objects, all measures under all conditions, and trained minus noise.

    Args:
        found: detections of each scene under each condition, "none" and "noise" and "trained" among them.
        truths: boxes and labels of each scene.
        label: only objects of this class count; None for all.
        seed: of the samples of the scenes.
    """
    there = [_only(truth, label) for truth in truths]
    matched = {
        name: (match([_only(row, label) for row in rows], there), match(rows, there, any_label=True))
        for name, rows in found.items()
    }
    least = working_point(matched["none"][0])
    objects = sum(len(truth["labels"]) for truth in there)
    if not objects:
        raise SpecError("the scenes hold no object that should vanish; take more by --n, or another --label.")
    rng, once = np.random.default_rng(seed), np.ones(len(truths), np.int64)
    samples = [once, *rng.multinomial(len(truths), [1 / len(truths)] * len(truths), size=_RESAMPLED)]
    values = {name: np.array([_values(*pair, least, w) for w in samples]) for name, pair in matched.items()}
    rows = {name: _estimates(held) for name, held in values.items()}
    return {
        "threshold": least, "objects": objects, "conditions": rows,
        "trained_minus_noise": _estimates(values["trained"] - values["noise"]),
    }  # fmt: skip


def vanish_lines(result: dict[str, Any], folder: Path) -> list[str]:
    """For reading."""
    label = "objects of any class" if result["label"] is None else f"objects of class {result['label']}"
    lines = [
        f"detector      {result['detector']}  (weights {result['weights_sha256'][:12]})",
        f"scenes        {result['n']} of {result['scenes']}, {result['objects']} {label}, none seen in training",
        f"patch         {100 * result['share'] ** 2:.0f} % of the area of a box; {result['transforms']}",
        f"{'':<14}{'AP50':<24}{'AP':<24}{'recall':<24}found as any class",
    ]
    for name in CONDITIONS:
        cells = (str(Estimate(**result["conditions"][name][key])) for key in MEASURES)
        lines.append(f"{_TITLES[name]:<14}" + "".join(f"{cell:<24}" for cell in cells).rstrip())
    return [*lines, f"picture: {folder / result['picture']}"]


def _data_name(name: str) -> str:
    """What a record calls a training split, as data is asked for."""
    return name.removesuffix("-train")


def _detector(request: VanishMeasureRequest, trained: VanishingPatch) -> Detector:
    """The one asked for, or the very one that the patch was trained on."""
    if request.detector is not None:
        return load_detector(request.detector, weights=request.weights)
    found = load_detector(trained.card["detector"], weights=request.weights)
    check_weights(request.folder, found.card.name, found.weights_sha256, trained.spec.weights_sha256)
    return found


def _detections(detector: Detector, scenes: Scenes, patched: _Patched) -> list[dict[str, Tensor]]:
    found: list[dict[str, Tensor]] = []
    for at in range(0, len(scenes), _ROWS):
        numbers = range(at, min(at + _ROWS, len(scenes)))
        images = patched.images(scenes.take(numbers), numbers)
        found += [
            {key: row[key].cpu() for key in ("boxes", "labels", "scores")}
            for row in detect(detector.network, images, detector.card.name)
        ]
    return found


def _picture(
    detector: Detector, scenes: Scenes, conditions: Sequence[_Patched], least: float, names: tuple[str, ...]
) -> Image.Image:
    """The first scenes, under some conditions, with the boxes that score enough."""
    numbers = range(min(_PICTURED, len(scenes)))
    held = scenes.take(numbers)
    columns: list[list[Shown]] = []
    for patched in conditions:
        images = patched.images(held, numbers)
        column: list[Shown] = []
        rows = detect(detector.network, images, detector.card.name)
        column += [
            (image, *box_texts(row, least, names), scene.boxes)
            for scene, image, row in zip(held, images, rows, strict=True)
        ]
        columns.append(column)
    titles = [_TITLES[patched.condition] for patched in conditions]
    return draw_grid(list(zip(*columns, strict=True)), titles)


def _only(row: dict[str, Tensor], label: int | None) -> dict[str, Tensor]:
    return row if label is None else {key: value[row["labels"] == label] for key, value in row.items()}


def _values(matched: Matched, any_label: Matched, least: float, weights: npt.NDArray[np.int64]) -> list[float]:
    """The measures in their order, scene k counted weights[k] times."""
    ap = average_precision(matched, weights)
    return [float(ap[0]), float(ap.mean()), recall(matched, least, weights), recall(any_label, least, weights)]


def _estimates(held: npt.NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """By measure, of (1 + R, 4): the value over all scenes in the first row, then those over samples."""
    return {key: asdict(value) for key, value in zip(MEASURES, intervals(held[0], held[1:]), strict=True)}
