"""`robustgen patch eval`: a patch on images that its training did not see, beside patches of noise."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.classifier import Classifier
from robustgen.classifiers import load_classifier
from robustgen.data import load_data, parse_ids
from robustgen.dataset import Dataset
from robustgen.durable import disk_errors, write_json
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.judge import strict_float32
from robustgen.patch.camera import PrintAndCamera
from robustgen.patch.design import image_marks, usable_classifier
from robustgen.patch.files import TrainedPatch, load_patch
from robustgen.patch.paste import lit, paste
from robustgen.patch.train import centres_for
from robustgen.patch.transforms import Draws, Transforms
from robustgen.prepare import DEFAULT_BATCH
from robustgen.progress import Progress
from robustgen.rng import ExampleRng, child_stream
from robustgen.runs import check_weights
from robustgen.spec import compact_ids
from robustgen.statistics import Estimate, proportion

__all__ = [
    "HeldOut",
    "MeasureRequest",
    "Measured",
    "describe",
    "eval_lines",
    "hold_out",
    "measure_patch",
    "store_result",
    "write_result",
]

_TRAINING = re.compile(r"-train$")  # how data names its training split


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRequest:
    """What is to be measured, as typed.

    Attributes:
        folder: of the patch.
        classifier: None for the one that it was trained on.
        data: None for the data that it was trained on, of which only unseen images are used.
        n: the first so many unseen images; None for all.
        transforms: as `Transforms.parse` reads them; None for those of the training, in draws of their own.
        camera: whether print and camera are simulated as well.
        seed: of every draw.
    """

    folder: Path
    classifier: str | None = None
    data: str | None = None
    n: int | None = None
    transforms: str | None = None
    camera: bool = False
    seed: int = 0
    weights: Path | None = None
    data_dir: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A patch, a classifier, and the unseen images on which one is tried on the other.

    Attributes:
        ids: images that the classifier gets right without a patch, and whose label is not the target.
        counts: how many were looked at, and why others do not count.
    """

    trained: TrainedPatch
    classifier: Classifier
    dataset: Dataset
    ids: tuple[int, ...]
    counts: dict[str, int]
    camera: PrintAndCamera | None
    seed: int

    def streams(self, ids: Sequence[int], purpose: str) -> ExampleRng:
        """Streams of their own, beside those of the training."""
        return child_stream(ExampleRng.of(self.seed, ids), purpose)

    def successes(self, draw: Measured, *, noise: bool) -> int:
        """How many images the patch, or patches of uniform noise, make a success."""
        return sum(self._won(ids, draw, noise=noise) for ids in _batches(self.ids))

    def _won(self, ids: Sequence[int], draw: Measured, *, noise: bool) -> int:
        where, rng = self.classifier.mean.device, self.streams(ids, "patch eval")
        x, y = (part.to(where) for part in self.dataset.batch(ids))
        own = self.trained.patch.to(where)
        patch = rng.uniform(own.shape, "random patch", 0, where) if noise else own
        draws = draw.draws(rng, where)
        shown = lit(patch if self.camera is None else self.camera.printed(patch), draws, rng)
        centres = centres_for(self.trained.place, draws, shown, x)
        predictions = self.predict(paste(x, shown, self.trained.mask.to(where), centres, draws), ids)
        target = self.trained.spec.target
        return int((predictions != y if target is None else predictions == target).sum())

    def predict(self, x: Tensor, ids: Sequence[int]) -> Tensor:
        """(B,) the class of each image, through the camera where there is one; the same exposure for the same id."""
        with torch.no_grad():
            seen = x if self.camera is None else self.camera.photographed(x, self.streams(ids, "patch camera"))
            logits: Tensor = self.classifier(seen)
        return logits.argmax(1)


@dataclass(frozen=True, slots=True)
class Measured:
    """Transformations that are drawn, or an angle and a scale that are given with the rest neutral."""

    transforms: Transforms
    angle: float | None = None
    scale: float | None = None

    def draws(self, rng: ExampleRng, device: torch.device) -> Draws:
        """One for each stream."""
        drawn = self.transforms.draw(rng, 0, device)
        if self.angle is None or self.scale is None:
            return drawn
        return replace(
            drawn, angle=torch.full_like(drawn.angle, self.angle), scale=torch.full_like(drawn.scale, self.scale)
        )


def measure_patch(request: MeasureRequest, *, device: str, progress: Progress) -> dict[str, Any]:
    """Success of the patch and of patches of noise; kept in the folder as eval-CLASSIFIER-IDENTITY.json.

    A success: the target is predicted, or without one a wrong class. Each image is seen once with the patch and once
    with noise of its own, uniform in each pixel, under the same transformations at the same place. The intervals are
    over images, for this one patch.

    Raises:
        SpecError, ArtifactError: the request cannot be met.
    """
    held, draw = hold_out(request, device=device), _drawn(request)
    progress.start("patch eval", 2)
    with strict_float32():
        found: dict[str, Any] = {}
        for number, (name, noise) in enumerate((("success", False), ("random_success", True)), 1):
            share = proportion(held.successes(draw, noise=noise), len(held.ids))
            found[name] = asdict(share)
            progress.advance(number, f"{name} {100 * share.value:.1f} %")
    result = {**describe(held), "transforms": str(draw.transforms), **found}
    store_result(held, "eval", result)
    return result


def hold_out(request: MeasureRequest, *, device: str) -> HeldOut:
    """Load and check all that measuring needs, and look at the images without a patch.

    Raises:
        SpecError, ArtifactError: the request cannot be met.
    """
    trained, where = load_patch(request.folder), pick_device(device)
    if request.transforms is not None:
        Transforms.parse(request.transforms)
    name = request.data or _TRAINING.sub("", trained.spec.data)
    dataset = load_data(name, data_dir=request.data_dir)
    if dataset.shape != (len(trained.patch), *trained.image_size):
        raise SpecError(
            f"{request.folder} is a patch for images of {(len(trained.patch), *trained.image_size)}, {name} has "
            f"{dataset.shape}."
        )
    unseen = _unseen(trained, dataset)
    if not unseen:
        raise SpecError(f"{name} holds no image that the training did not see; name other data by --data.")
    ids = [unseen[k] for k in parse_ids(None, request.n, len(unseen), f"the unseen part of {name}")]
    classifier = usable_classifier(_load(request, trained, dataset).to(where), dataset, ids)
    target = trained.spec.target
    if target is not None and target >= _classes(classifier, dataset, ids):
        raise SpecError(f"the target of {request.folder} is class {target}, which {classifier.card.name} has not.")
    held = HeldOut(
        trained=trained, classifier=classifier, dataset=dataset, ids=tuple(ids), counts={},
        camera=PrintAndCamera() if request.camera else None, seed=request.seed,
    )  # fmt: skip
    return _right(held, len(dataset) - len(unseen))


def describe(held: HeldOut) -> dict[str, Any]:
    """What was measured on what."""
    spec = held.trained.spec
    return {
        "schema": 1, "patch": held.trained.card["identity"], "size": spec.size, "target": spec.target,
        "classifier": held.classifier.card.name, "weights_sha256": held.classifier.weights_sha256,
        "trained_on": spec.classifier, "data": held.dataset.name, "data_sha256": held.dataset.digest(held.ids),
        "ids": compact_ids(held.ids), "n": len(held.ids), **held.counts, "location": spec.location, "seed": held.seed,
        "camera": None if held.camera is None else held.camera.to_json(),
    }  # fmt: skip


def store_result(held: HeldOut, kind: str, result: dict[str, Any]) -> Path:
    """KIND-CLASSIFIER-HASH.json in the folder of the patch."""
    return write_result(
        held.trained.folder, kind, held.classifier.card.name, result, ("success", "random_success", "cells")
    )


def write_result(folder: Path, kind: str, who: str, result: dict[str, Any], measured: Sequence[str]) -> Path:
    """KIND-WHO-HASH.json; the hash is of what was asked, all but the `measured` keys, so asking again rewrites."""
    asked = {key: value for key, value in result.items() if key not in measured}
    digest = hashlib.sha256(repr(sorted(asked.items())).encode()).hexdigest()
    stem = re.sub(r"[^\w.-]+", "-", who.rpartition("/")[2])
    path = folder / f"{kind}-{stem}-{digest[:8]}.json"
    result["file"] = path.name
    with disk_errors(folder):
        write_json(path, result)
    return path


def eval_lines(result: dict[str, Any]) -> list[str]:
    """For reading."""
    aim = "any wrong class" if result["target"] is None else f"class {result['target']}"
    counted = (
        f"{result['n']} of {result['data']} that count; {result['seen']} seen in training, {result['misclassified']} "
        f"misclassified, {result['of_the_target']} of the target left out"
    )
    rows = [
        ("patch", f"{result['size']} pixels towards {aim}, trained on {result['trained_on']}"),
        ("classifier", f"{result['classifier']}  (weights {result['weights_sha256'][:12]})"),
        ("images", counted),
        ("transforms", f"{result['transforms']}; location {result['location']}; seed {result['seed']}"),
        ("camera", "none" if result["camera"] is None else result["camera"]["kind"]),
        ("success", str(Estimate(**result["success"]))),
        ("random patch", str(Estimate(**result["random_success"]))),
    ]  # fmt: skip
    return [f"{name:<13} {text}" for name, text in rows]


def _drawn(request: MeasureRequest) -> Measured:
    text = request.transforms
    return Measured(load_patch(request.folder).transforms if text is None else Transforms.parse(text))


def _unseen(trained: TrainedPatch, dataset: Dataset) -> list[int]:
    """Ids whose pixels are none of those that the training saw, wherever they lay then."""
    seen = set(trained.seen.tolist())
    marks = image_marks(dataset, range(len(dataset))).tolist()
    return [id_ for id_, mark in enumerate(marks) if mark not in seen]


def _load(request: MeasureRequest, trained: TrainedPatch, dataset: Dataset) -> Classifier:
    """The classifier asked for, or the very one that the patch was trained on."""
    if request.classifier is not None:
        return load_classifier(request.classifier, weights=request.weights, shape=dataset.shape)
    found = load_classifier(trained.card["classifier"], weights=request.weights, shape=dataset.shape)
    check_weights(request.folder, found.card.name, found.weights_sha256, trained.spec.weights_sha256)
    return found


def _classes(classifier: Classifier, dataset: Dataset, ids: Sequence[int]) -> int:
    with torch.no_grad():
        return int(classifier(dataset.batch(ids[:1])[0].to(classifier.mean.device)).shape[1])


def _right(held: HeldOut, seen: int) -> HeldOut:
    """Only the images that are right without a patch, and not of the target."""
    kept, wrong, same = [], 0, 0
    for ids in _batches(held.ids):
        x, y = (part.to(held.classifier.mean.device) for part in held.dataset.batch(ids))
        with strict_float32():
            right = (held.predict(x, ids) == y).tolist()
        for id_, fine, label in zip(ids, right, y.tolist(), strict=True):
            wrong += not fine
            same += fine and label == held.trained.spec.target
            if fine and label != held.trained.spec.target:
                kept.append(id_)
    if not kept:
        raise SpecError(
            f"none of {len(held.ids)} unseen images counts: {wrong} are misclassified without a patch, {same} are of "
            "the target; take more, or another classifier."
        )
    counts = {"looked_at": len(held.ids), "seen": seen, "misclassified": wrong, "of_the_target": same}
    return replace(held, ids=tuple(kept), counts=counts)


def _batches(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for at in range(0, len(ids), DEFAULT_BATCH):
        yield ids[at : at + DEFAULT_BATCH]
