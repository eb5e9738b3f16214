"""From a request to a design: what a patch is trained on, for what, and how; all of it is checked before any work."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from robustgen.attacks.losses import LOSSES
from robustgen.classifier import Classifier, check_classifier
from robustgen.classifiers import load_classifier
from robustgen.data import load_data, pixel_marks
from robustgen.dataset import Dataset
from robustgen.environment import pick_device
from robustgen.errors import SpecError, unknown_name
from robustgen.fields import NOT_NEGATIVE, POSITIVE, SEED, WHOLE, Rule, check_value, one_of, or_none
from robustgen.goals import find_class
from robustgen.health import is_stochastic
from robustgen.patch.physical import load_colours
from robustgen.patch.shape import make_mask, parse_size
from robustgen.patch.transforms import Transforms
from robustgen.precision import SearchModel, choose_form, parse_form
from robustgen.prepare import default_data
from robustgen.spec import Spec, compact_ids
from robustgen.training.data import split_validation

__all__ = [
    "PatchDesign",
    "PatchRequest",
    "PatchSpec",
    "TrainedPatchSpec",
    "design_patch",
    "image_marks",
    "tensor_digest",
    "usable_classifier",
]

_SPLIT = ("fashion-mnist", "cifar10")  # data with training images of their own
_IMAGES = 2000  # of those, unless somebody asks for another number
_PROBE_ROWS = 64  # for the timing of forms
_LOCATION = r"random|optimised|fixed(:\d+,\d+)?"


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRequest:
    """What is asked for, as typed.

    Attributes:
        size: "8" or "6x10", in pixels of the image.
        shape: "square", "circle", or an image file.
        target: class by number or name; None for any wrong one.
        location: "random", anew for each image and step; "fixed", in the middle; "fixed:ROW,COLUMN", the upper left
            pixel; "optimised", random for a quarter of the steps, then the best place of a grid.
        transforms: as `Transforms.parse` reads them.
        tv, nps: weights of total variation and non-printability, beside a loss of weight 1.
        colours: file of printable colours; None for the default set.
        optimizer: "adam", or "sign" for steps along the sign of the gradient.
        lr, schedule: the first step length in pixels of [0, 1]; "cosine" falls to 0, "constant" stays.
        loss: a name of `robustgen.attacks.losses`.
        images: how many are trained on; None for all, of data with a training split 2,000.
        precision: form of the network in training, as in `evaluate`; "auto" times them and takes the fastest.
    """

    classifier: str = "fmnist-standard"
    size: str = "8"
    shape: str = "square"
    target: str | None = None
    location: str = "random"
    transforms: str = "default"
    tv: float = 0.0
    nps: float = 0.0
    colours: Path | None = None
    optimizer: str = "adam"
    lr: float = 0.05
    schedule: str = "cosine"
    loss: str = "ce"
    steps: int = 500
    batch_size: int = 64
    images: int | None = None
    precision: str = "auto"
    data: str | None = None
    seed: int = 0
    weights: Path | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            check_value(f"--{name.replace('_', '-')}", getattr(self, name), rule)
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)
        if re.fullmatch(_LOCATION, self.location) is None:
            raise SpecError(f"--location must be random, optimised, fixed or fixed:ROW,COLUMN, got '{self.location}'.")
        if self.precision != "auto":
            parse_form(self.precision)
        Transforms.parse(self.transforms)
        parse_size(self.size)


_RULES: dict[str, Rule] = {
    "tv": NOT_NEGATIVE, "nps": NOT_NEGATIVE, "lr": POSITIVE, "steps": WHOLE, "batch_size": WHOLE, "seed": SEED,
    "images": (or_none(WHOLE[0]), WHOLE[1]), "optimizer": one_of("adam", "sign"),
    "schedule": one_of("cosine", "constant"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPatchSpec(Spec):
    """What every trained patch depends on, but for the kind of processor; hashes where a file stands behind it.

    Attributes:
        weights_sha256: of the network that is attacked.
        size: "8x8"; mask_sha256 is of its 0 and 1 row by row.
        transforms: as `str(Transforms)` writes them.
    """

    weights_sha256: str
    size: str
    shape: str
    mask_sha256: str
    transforms: str
    tv: float
    nps: float
    colours_sha256: str
    optimizer: str
    lr: float
    schedule: str
    steps: int
    batch_size: int
    seed: int
    schema: int = 1

    @property
    def name(self) -> str:
        """How a folder calls it."""
        return "patch"

    def to_dict(self) -> dict[str, Any]:
        """As `read` takes it."""
        return self.to_json()

    @classmethod
    def read(cls, table: Any) -> Self:
        """From a recipe.json."""
        return cls.from_json(table, "recipe.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSpec(TrainedPatchSpec):
    """A patch against a classifier.

    Attributes:
        ids: of the training images in `data`, whose hash over pixels and labels is `data_sha256`.
        precision: the form of the network, as resolved.
    """

    classifier: str
    data: str
    data_sha256: str
    ids: str
    target: int | None
    location: str
    loss: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchDesign:
    """A request that has been checked.

    Attributes:
        spec: what the result depends on.
        asked: the classifier as it was typed, by which it is loaded again.
        classifier: on its device, the one attacked.
        search: the same in the form that gradients are taken of.
        dataset, ids: the training images that count: with a target those of other classes.
        mask: (1, h, w) of 0 and 1.
        colours: (N, C), printable.
        transforms: drawn for each image and step.
        place: (row, column) of the upper left pixel; None where it is random or still to be found.
    """

    spec: PatchSpec
    asked: str
    classifier: Classifier
    search: SearchModel
    dataset: Dataset
    ids: tuple[int, ...]
    mask: Tensor
    colours: Tensor
    transforms: Transforms
    place: tuple[int, int] | None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the patch."""
        return self.mask.shape[1], self.mask.shape[2]


def design_patch(request: PatchRequest, *, device: str, form: str | None = None) -> PatchDesign:
    """Load and check all that training needs.

    Args:
        request: what is asked for.
        device: "auto", "cpu", "cuda" or "mps".
        form: what "auto" came to before, for a training that goes on.

    Raises:
        SpecError, ArtifactError: the request cannot be met; nothing has been written.
    """
    where, size = pick_device(device), parse_size(request.size)
    mask, transforms = make_mask(request.shape, size), Transforms.parse(request.transforms)
    dataset, ids = _training_images(request)
    _check_size(size, transforms, dataset.shape)
    colours = load_colours(request.colours, dataset.shape[0])
    classifier = usable_classifier(
        load_classifier(request.classifier, weights=request.weights, shape=dataset.shape).to(where), dataset, ids
    )
    names = classifier.card.class_names or dataset.class_names
    target = None if request.target is None else find_class(request.target, names)
    kept = tuple(id_ for id_ in ids if dataset.labels[id_] != target)
    if not kept:
        raise SpecError(f"--target {request.target}: every training image is of that class; name another class.")
    x, y = (part.to(where) for part in dataset.batch(kept[:_PROBE_ROWS]))
    search, _ = choose_form(classifier, x, y, form or request.precision)
    spec = PatchSpec(
        classifier=classifier.card.name, weights_sha256=classifier.weights_sha256, data=dataset.name,
        data_sha256=dataset.digest(kept), ids=compact_ids(kept), size=f"{size[0]}x{size[1]}", shape=request.shape,
        mask_sha256=tensor_digest(mask), target=target, location=request.location, transforms=str(transforms),
        tv=float(request.tv), nps=float(request.nps), colours_sha256=tensor_digest(colours),
        optimizer=request.optimizer, lr=float(request.lr), schedule=request.schedule, loss=request.loss,
        steps=request.steps,
        batch_size=min(request.batch_size, len(kept)), precision=str(search.form), seed=request.seed,
    )  # fmt: skip
    return PatchDesign(
        spec=spec, asked=request.classifier, classifier=classifier, search=search, dataset=dataset, ids=kept,
        mask=mask, colours=colours, transforms=transforms, place=_place(request.location, size, dataset.shape),
    )  # fmt: skip


def usable_classifier(classifier: Classifier, dataset: Dataset, ids: Sequence[int]) -> Classifier:
    """The classifier, if a patch can be trained or measured on it.

    Raises:
        SpecError: it cannot be evaluated, or does not give the same answer each time.
    """
    x, _ = dataset.batch(ids[:16])
    x = x.to(classifier.mean.device)
    check_classifier(classifier, x, torch.as_tensor(dataset.labels[list(ids)]))
    if classifier.stochastic or is_stochastic(classifier, x):
        raise SpecError(
            f"{classifier.card.name} answers otherwise each time; a patch needs a classifier that does not."
        )
    return classifier


def image_marks(dataset: Dataset, ids: Sequence[int]) -> Tensor:
    """(N,) int64: the marks of some images, by which each is known wherever it lies."""
    return pixel_marks(dataset.read(id_) for id_ in ids)


def _training_images(request: PatchRequest) -> tuple[Dataset, list[int]]:
    """Those of the training split; of data in one part its second half, so that the first is left to measure on."""
    name = request.data or default_data(request.classifier)
    dataset = load_data(name, data_dir=request.data_dir, split="train" if name in _SPLIT else "test")
    if name in _SPLIT:
        ids, count = list(range(len(dataset))), request.images or _IMAGES
    else:
        measured = set(split_validation(dataset.labels, (len(dataset) + 1) // 2))
        ids = [id_ for id_ in range(len(dataset)) if id_ not in measured]
        count = request.images or len(ids)
    if not ids or count > len(ids):
        raise SpecError(
            f"{name} has {len(ids)} images to train on (data in one part keeps a half to measure on); got --images "
            f"{count}."
        )
    return dataset, [ids[k] for k in split_validation(dataset.labels[ids], count)]


def _check_size(size: tuple[int, int], transforms: Transforms, shape: tuple[int, int, int]) -> None:
    largest = [math.ceil(side * transforms.scale_high) for side in size]
    if largest[0] > shape[1] or largest[1] > shape[2]:
        raise SpecError(
            f"--size: a patch of {size[0]} x {size[1]} pixels, up to {transforms.scale_high:g} times as large, does "
            f"not fit into images of {shape[1]} x {shape[2]}; type a smaller size or scale."
        )


def _place(location: str, size: tuple[int, int], shape: tuple[int, int, int]) -> tuple[int, int] | None:
    if not location.startswith("fixed"):
        return None
    room = shape[1] - size[0], shape[2] - size[1]
    if location == "fixed":
        return room[0] // 2, room[1] // 2
    row, column = map(int, location.partition(":")[2].split(","))
    if row > room[0] or column > room[1]:
        raise SpecError(f"--location {location}: the upper left pixel can be at most at fixed:{room[0]},{room[1]}.")
    return row, column


def tensor_digest(values: Tensor) -> str:
    """SHA-256 over the float32 values, row by row."""
    return hashlib.sha256(values.float().contiguous().numpy().tobytes()).hexdigest()
