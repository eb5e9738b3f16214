"""Detectors with torchvision's interface: by name, by card, from torchvision, or the user's own; asked and checked."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.cards import Card
from robustgen.detectors.network import NetworkSettings, TinyDetector
from robustgen.errors import ArtifactError, SpecError, unknown_name
from robustgen.fields import read_section
from robustgen.files import impatient
from robustgen.usercode import PYTHON, call_user_function, first_line
from robustgen.weights import Weights, read_weights, state_sha256

__all__ = ["TINY", "TORCHVISION_DETECTION", "Detector", "ask", "bundled_detectors", "detect", "load_detector"]

TINY = "tiny-detector"
TORCHVISION_DETECTION = "torchvision-detection:"
COCO_CLASSES = 91  # of torchvision's own weights, background included
_ZOO = Path(__file__).resolve().parent.parent / "zoo" / "detectors"
_PIXELS = 2**18  # of a batch in `detect`, about
_WANTED = "must return a list with a dict of boxes, labels and scores for each image, as torchvision's detectors do"


@dataclass(frozen=True, eq=False)
class Detector:
    """A network in eval mode, its parameters frozen, and what is known of it.

    Attributes:
        network: list of images (C, H, W) in [0, 1] to list of dicts, as `TinyDetector` has it.
        card: `classes` and `class_names` count the background.
        weights_sha256: of the weights file, or over names and bytes of the network's state.
    """

    network: nn.Module
    card: Card
    weights_sha256: str

    def to(self, device: torch.device) -> Detector:
        """Itself, its network on that device."""
        self.network.to(device)
        return self


def bundled_detectors() -> dict[str, Path]:
    """Names and card files of the detectors that come with robustgen, sorted by name."""
    return {path.stem: path for path in sorted(_ZOO.glob("*.json"))}


def load_detector(spec: str | nn.Module, *, weights: Path | None = None) -> Detector:
    """A detector by name, from a card, from torchvision, or around a module.

    Args:
        spec: a bundled name; the path of a card (`.json`) whose architecture is "tiny-detector" or
            "torchvision-detection:NAME"; `torchvision-detection:NAME`; `python:FILE.py:FUNCTION` for a function without
            arguments that returns a module; or a module.
        weights: file that replaces the weights which the spec would bring.

    Raises:
        SpecError: nothing of that name.
        ArtifactError: a file is missing, damaged, unsafe, or not what the card says; it is said where it belongs.
    """
    file = None if weights is None else read_weights(weights)
    with torch.random.fork_rng(devices=[]):
        if isinstance(spec, nn.Module):
            network, card = spec, _card_of_module(spec, type(spec).__name__, "a module in memory")
        elif spec.startswith(PYTHON):
            network, card = _from_python(spec)
        elif spec.startswith(TORCHVISION_DETECTION):
            network, card = _from_torchvision(spec, file)
        else:
            network, card, file = _from_card(spec, file)
    if file is not None:
        file.load_into(network, card.architecture)
    network.eval().requires_grad_(requires_grad=False)
    return Detector(network, card, state_sha256(network.state_dict()) if file is None else file.sha256)


def detect(network: nn.Module, images: Sequence[Tensor], name: str = "the detector") -> list[dict[str, Tensor]]:
    """Detections of images (C, H, W) in [0, 1], without gradients, in batches that fit; checked as by `ask`."""
    found: list[dict[str, Tensor]] = []
    at = 0
    with torch.no_grad():
        while at < len(images):
            rows = max(1, _PIXELS // (images[at].shape[1] * images[at].shape[2]))
            found += ask(network, images[at : at + rows], name)
            at += rows
    return found


def ask(network: nn.Module, images: Sequence[Tensor], name: str = "the detector") -> list[dict[str, Tensor]]:
    """What a detector in eval mode answers, with its gradients, if it is what torchvision's interface says.

    Args:
        network: list of images to list of dicts.
        images: (C, H, W) float32 in [0, 1] each.
        name: for messages.

    Returns:
        For each image boxes (N, 4) x1 y1 x2 y2, labels (N,), scores (N,) in [0, 1].

    Raises:
        SpecError: it raised, or answers in another format.
    """
    try:
        answer: Any = network(list(images))
    except SpecError:
        raise
    except Exception as error:  # a user's network may raise anything
        shape = tuple(images[0].shape)
        raise SpecError(
            f"{name} raised {type(error).__name__} on a list of {len(images)} images, the first of shape {shape}: "
            f"{first_line(error)}."
        ) from error
    if not isinstance(answer, list | tuple):
        raise SpecError(f"{name} {_WANTED}; got a {type(answer).__name__}.")
    if len(answer) != len(images):
        raise SpecError(f"{name} {_WANTED}; got {len(answer)} for {len(images)} images.")
    for found in answer:
        _check(found, name)
    return list(answer)


def _check(found: Any, name: str) -> None:
    """Refuse what is no detection of one image."""
    if not isinstance(found, dict):
        raise SpecError(f"{name} {_WANTED}; got a {type(found).__name__} for an image.")
    for key in ("boxes", "labels", "scores"):
        if not isinstance(found.get(key), Tensor):
            held = f"a {type(found[key]).__name__}" if key in found else f"only {', '.join(map(str, found))}"
            raise SpecError(f"{name} {_WANTED}; '{key}' must be a tensor, got {held}.")
    boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
    shapes = [tuple(part.shape) for part in (boxes, labels, scores)]
    if shapes != [(len(boxes), 4), (len(boxes),), (len(boxes),)]:
        raise SpecError(
            f"{name}: boxes, labels and scores must have the shapes (N, 4), (N,) and (N,), got "
            f"{', '.join(map(str, shapes))}."
        )
    if not (bool(boxes.isfinite().all()) and bool(scores.isfinite().all())):
        raise SpecError(f"{name} returned NaN or infinite boxes or scores.")
    low, high = (float(scores.detach().min()), float(scores.detach().max())) if len(scores) else (0.0, 0.0)
    if low < 0 or high > 1:
        raise SpecError(f"{name}: scores must lie in [0, 1], got {low:g} to {high:g}; apply a sigmoid or softmax.")
    if bool((boxes[:, 2:] < boxes[:, :2]).any()):
        raise SpecError(f"{name}: boxes must be x1 y1 x2 y2 in pixels with x1 <= x2 and y1 <= y2; got another format.")


def _from_card(spec: str, file: Weights | None) -> tuple[nn.Module, Card, Weights]:
    known = bundled_detectors()
    if spec not in known and not spec.endswith(".json"):
        raise unknown_name(
            "detector", spec, known,
            hint=f"Or give a card file (.json), {TORCHVISION_DETECTION}NAME or python:FILE.py:FUNCTION.",
        )  # fmt: skip
    path = known.get(spec, Path(spec))
    card = Card.load(path)
    if card.architecture == TINY:
        network: nn.Module = TinyDetector(read_section(NetworkSettings, "network", card.options))
    elif card.architecture.startswith(TORCHVISION_DETECTION):
        network = _torchvision_network(card.architecture, card.classes or COCO_CLASSES, card.options)
    else:
        raise SpecError(
            f"{path} is no card of a detector: its architecture is '{card.architecture}', not {TINY} or "
            f"{TORCHVISION_DETECTION}NAME; see `robustgen list detectors`."
        )
    if file is None:
        if card.weights is None:
            raise SpecError(f"card {path} names no weights: add the field 'weights', or pass --weights FILE.")
        file = read_weights(path.parent / card.weights)
        if card.sha256 not in (None, file.sha256):
            raise ArtifactError(
                f"weights {file.path}: the sha256 is {file.sha256}, the card of {card.name} says {card.sha256}; "
                "restore the file, or pass --weights FILE to use another."
            )
    return network, card, file


def _from_torchvision(spec: str, file: Weights | None) -> tuple[nn.Module, Card]:
    """With the weights of a file, as many classes as they have; or torchvision's own, from its cache or its server."""
    if file is not None:
        classes = _classes(spec, file)
        return _torchvision_network(spec, classes, {}), _torchvision_card(spec, classes, ())
    import torchvision  # here, not above: slow to import, and seldom needed

    name = _known(spec)
    held = torchvision.models.get_model_weights(name).DEFAULT
    try:
        with impatient(), contextlib.redirect_stdout(sys.stderr):
            network: nn.Module = torchvision.models.get_model(name, weights=held)
    except Exception as error:  # no network, no space, a broken cache: for the user it is all the same
        place = Path(torch.hub.get_dir()) / "checkpoints" / held.url.rpartition("/")[2]
        raise ArtifactError(
            f"{spec} has no weights here and could not get them ({type(error).__name__}: {first_line(error)}); put "
            f"them to {place}, or pass --weights FILE (.safetensors, .pt or .pth)."
        ) from error
    names = ("background", *held.meta["categories"][1:])
    return network, _torchvision_card(spec, len(names), names)


def _torchvision_card(spec: str, classes: int, names: tuple[str, ...]) -> Card:
    return Card(
        name=spec, title=f"{spec.removeprefix(TORCHVISION_DETECTION)} of torchvision", architecture=spec, channels=3,
        classes=classes, class_names=names, source="torchvision",
    )  # fmt: skip


def _torchvision_network(spec: str, classes: int, options: dict[str, Any]) -> nn.Module:
    import torchvision

    name = _known(spec)
    try:
        network: nn.Module = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=classes, **options
        )
    except (TypeError, ValueError) as error:
        raise SpecError(f"{spec} cannot be built with {options}: {first_line(error)}.") from error
    return network


def _known(spec: str) -> str:
    """The name in torchvision, if it is one."""
    import torchvision

    name, known = spec.removeprefix(TORCHVISION_DETECTION), torchvision.models.list_models(
        module=torchvision.models.detection
    )  # fmt: skip
    if name not in known:
        raise unknown_name("detector of torchvision", name, known)
    return name


def _classes(spec: str, file: Weights) -> int:
    """How many classes a file was trained for: by the first layer of another size than for COCO's."""
    with torch.device("meta"):
        outline = _torchvision_network(spec, COCO_CLASSES, {}).state_dict()
    for key, tensor in outline.items():
        held = file.tensors.get(key)
        if held is not None and held.ndim and held.shape != tensor.shape:
            return max(1, len(held) * COCO_CLASSES // len(tensor))
    return COCO_CLASSES


def _from_python(spec: str) -> tuple[nn.Module, Card]:
    made = call_user_function(spec)
    if not isinstance(made, nn.Module):
        raise SpecError(f"{spec}: the function must return a torch.nn.Module, got {type(made).__name__}.")
    place, _, function = spec.removeprefix(PYTHON).rpartition(":")
    return made, _card_of_module(made, f"{Path(place).stem}.{function}", spec)


def _card_of_module(module: nn.Module, name: str, source: str) -> Card:
    architecture = type(module).__name__
    return Card(name=name, title=f"{architecture} of the user", architecture=architecture, source=source)
