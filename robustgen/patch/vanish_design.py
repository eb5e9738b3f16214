"""From a request to a design: which objects a patch makes vanish, for which detector; checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustgen.detectors.detector import Detector, load_detector
from robustgen.detectors.measure import usable_detector
from robustgen.detectors.scenes import Scene, Scenes
from robustgen.detectors.source import DEFAULT_SCENES, load_scenes
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.fields import NOT_NEGATIVE, POSITIVE, SEED, WHOLE, Rule, check_value, number, one_of, or_none
from robustgen.patch.design import TrainedPatchSpec, tensor_digest
from robustgen.patch.physical import load_colours
from robustgen.patch.shape import make_mask, parse_size
from robustgen.patch.transforms import Transforms

__all__ = [
    "VanishDesign",
    "VanishRequest",
    "VanishSpec",
    "design_vanishing",
    "find_label",
    "of_label",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VanishRequest:
    """What is asked for, as typed.

    Attributes:
        detector: as for `load_detector`.
        size: "12" or "8x12", pixels of the patch itself; how large it appears is for `share`.
        shape: "square", "circle", or an image file.
        share: edge of the patch over that of the box, by the roots of their areas, at scale 1.
        label: class whose objects carry the patch and must vanish, by number or name; None for all.
        transforms: as `Transforms.parse` reads them.
        tv, nps: weights of total variation and non-printability, beside scores.
        colours: file of printable colours; None for the default set.
        optimizer, lr, schedule: as for `PatchRequest`.
        scenes: name of data to compose them of, or coco:FOLDER.
        count: scenes to train on; None for 2,000 composed ones, or all of a folder.
    """

    detector: str = "fmnist-detector"
    size: str = "12"
    shape: str = "square"
    share: float = 0.35
    label: str | None = None
    transforms: str = "default"
    tv: float = 0.05
    nps: float = 0.01
    colours: Path | None = None
    optimizer: str = "adam"
    lr: float = 0.05
    schedule: str = "cosine"
    steps: int = 300
    batch_size: int = 16
    scenes: str = DEFAULT_SCENES
    count: int | None = None
    seed: int = 0
    weights: Path | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            option = {"count": "scenes-count"}.get(name, name.replace("_", "-"))
            check_value(f"--{option}", getattr(self, name), rule)
        largest = self.share * Transforms.parse(self.transforms).scale_high
        if largest > 1:
            raise SpecError(
                f"--share {self.share:g}, up to {largest:g} with --transforms, makes the patch larger than the object, "
                "which would vanish behind any patch; lower it."
            )
        parse_size(self.size)


_RULES: dict[str, Rule] = {
    "share": (number(0, 1.0001, open_low=True), "a number above 0, at most 1"),
    "tv": NOT_NEGATIVE, "nps": NOT_NEGATIVE, "lr": POSITIVE, "steps": WHOLE, "batch_size": WHOLE, "seed": SEED,
    "count": (or_none(WHOLE[0]), WHOLE[1]), "optimizer": one_of("adam", "sign"),
    "schedule": one_of("cosine", "constant"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class VanishSpec(TrainedPatchSpec):
    """A patch against a detector.

    Attributes:
        scenes, scenes_sha256, count: what it was trained on: name, hash over the pictures behind them, how many.
        share, label: as `VanishRequest` says.
    """

    detector: str
    scenes: str
    scenes_sha256: str
    count: int
    share: float
    label: int | None

    @property
    def name(self) -> str:
        """How a folder calls it."""
        return "vanishing-patch"


@dataclass(frozen=True, slots=True, kw_only=True)
class VanishDesign:
    """A request that has been checked.

    Attributes:
        spec: what the result depends on.
        asked: the detector as it was typed, by which it is loaded again.
        detector: on its device.
        scenes: to train on.
        mask: (1, h, w) of 0 and 1.
        colours: (N, C), printable.
        transforms: drawn for each object and step.
        device: where it is computed.
    """

    spec: VanishSpec
    asked: str
    detector: Detector
    scenes: Scenes
    mask: Tensor
    colours: Tensor
    transforms: Transforms
    device: torch.device


def design_vanishing(request: VanishRequest, *, device: str) -> VanishDesign:
    """Load and check all that training needs.

    Raises:
        SpecError, ArtifactError: the request cannot be met; nothing has been written.
    """
    where, size = pick_device(device), parse_size(request.size)
    mask, transforms = make_mask(request.shape, size), Transforms.parse(request.transforms)
    scenes = load_scenes(
        request.scenes, "train", count=request.count, seed=request.seed, data_dir=request.data_dir
    )  # fmt: skip
    colours = load_colours(request.colours, scenes.channels)
    detector = usable_detector(load_detector(request.detector, weights=request.weights).to(where), scenes, where)
    label = None if request.label is None else find_label(request.label, detector, scenes)
    if label is not None and not scenes.holds(label):
        raise SpecError(f"--label {request.label}: {scenes.name} has no object of class {label} to train on.")
    spec = VanishSpec(
        detector=detector.card.name, weights_sha256=detector.weights_sha256, scenes=scenes.name,
        scenes_sha256=scenes.digest(), count=len(scenes), size=f"{size[0]}x{size[1]}", shape=request.shape,
        mask_sha256=tensor_digest(mask), share=float(request.share), label=label, transforms=str(transforms),
        tv=float(request.tv), nps=float(request.nps), colours_sha256=tensor_digest(colours),
        optimizer=request.optimizer, lr=float(request.lr), schedule=request.schedule, steps=request.steps,
        batch_size=min(request.batch_size, len(scenes)), seed=request.seed,
    )  # fmt: skip
    return VanishDesign(
        spec=spec, asked=request.detector, detector=detector, scenes=scenes, mask=mask, colours=colours,
        transforms=transforms, device=where,
    )  # fmt: skip


def find_label(text: str, detector: Detector, scenes: Scenes) -> int:
    """The label of a class by number or name.

    Raises:
        SpecError: there is none of that name, or it is the background.
    """
    names = list(detector.card.class_names or scenes.class_names)
    if text in names[1:]:
        return names.index(text)
    if text.isdecimal() and 1 <= int(text) < max(len(names), 2):
        return int(text)
    raise SpecError(f"--label '{text}' is no class: type a number from 1 to {len(names) - 1}, or one of {names[1:]}.")


def of_label(scene: Scene, label: int | None) -> Tensor:
    """(N, 4) the boxes of one class, or all."""
    return scene.boxes if label is None else scene.boxes[scene.labels == label]
