"""Classifiers: networks that take images in [0, 1], with their card, always in eval mode and frozen."""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robustgen.cards import Card, bundled_cards
from robustgen.errors import ArtifactError, SpecError, unknown_name
from robustgen.files import impatient
from robustgen.nets import TORCHVISION, build_network, input_layer, outline
from robustgen.robustbench_zoo import ROBUSTBENCH, build_zoo, load_zoo
from robustgen.usercode import PYTHON, call_user_function, first_line
from robustgen.weights import Weights, read_weights, state_sha256

__all__ = ["Classifier", "check_classifier", "load_classifier"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_UNCOPYABLE = (AttributeError, RuntimeError, TypeError, pickle.PickleError)  # what copy.deepcopy raises


class Classifier(nn.Module):
    """A network with its normalisation and its card.

    Guarantee: always in eval mode, no parameter asks for a gradient.

    Args:
        network: (B, C, H, W) float32, normalised as the card says, to logits (B, K). It is set to eval and frozen.
        card: what is known of it.
        weights_sha256: of the weights file; by default computed over names and bytes of the network's state.

    Attributes:
        stochastic: True for subclasses whose `forward` takes a second argument `rng`, their only source of chance.
        training_modules: names of the sub-modules that were in training mode when the network was handed over.
    """

    stochastic: bool = False
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, card: Card, *, weights_sha256: str | None = None) -> None:
        super().__init__()
        self.card = card
        self.training_modules = frozenset(name for name, module in network.named_modules() if module.training)
        self.network = network.eval().requires_grad_(False)
        self.weights_sha256 = weights_sha256 or state_sha256(network.state_dict())
        self.normalises = bool(card.mean)
        self.register_buffer("mean", torch.tensor(card.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(card.std).reshape(1, -1, 1, 1), persistent=False)
        self.train(False)

    @property
    def was_training(self) -> bool:
        """Whether any part of the network was in training mode when it was handed over."""
        return bool(self.training_modules)

    def train(self, mode: bool = True) -> Classifier:
        """Stay in eval mode, whatever is asked."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 in [0, 1] to logits (B, K)."""
        if self.normalises:
            x = (x - self.mean) / self.std
        return self.network(x)  # type: ignore[no-any-return]


def load_classifier(
    spec: str | nn.Module | Classifier,
    *,
    weights: str | Path | None = None,
    shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
) -> Classifier:
    """A classifier by name, from a file, or around a module.

    Torch's global generator is left as found. A module is copied, so that the caller's own keeps its mode and its
    gradients.

    Args:
        spec: a bundled name; the path of a card (`.json`); `torchvision:NAME`; `robustbench:[DATA/][THREAT/]NAME`;
            `python:MODULE:FUNCTION` or `python:FILE.py:FUNCTION` for a function without arguments that returns a
            module; one of these behind a purifier, as in "diffpure:t=0.1,steps=20@fmnist-at"; `http://HOST:PORT`, a
            server that answers without gradients; or a module.
        weights: file that replaces the weights which the spec would bring.
        shape: (C, H, W) of the images it is for; a card that says otherwise is refused.
        classes: number of classes of the data; a card with fewer is refused.

    Raises:
        SpecError: nothing of that name, or it does not suit the data.
        ArtifactError: a file is missing, damaged, unsafe, or not what the card says.
    """
    if isinstance(spec, str) and "@" in spec:
        from robustgen.defended import defend, split_name  # it stands on this module

        if (split := split_name(spec)) is not None:
            inner = load_classifier(split[1], weights=weights, shape=shape, classes=classes)
            return defend(inner, split[0])
    if isinstance(spec, str) and spec.startswith(("http://", "https://")):
        from robustgen.remote import load_remote  # it stands on this module

        return load_remote(spec, shape=shape)
    file = None if weights is None else read_weights(Path(weights))
    with torch.random.fork_rng(devices=[]):
        if isinstance(spec, nn.Module):
            classifier = _from_module(_copy(spec), type(spec).__name__, "a module in memory", file)
        elif spec.startswith(PYTHON):
            classifier = _from_python(spec, file)
        elif spec.startswith(TORCHVISION):
            classifier = _from_torchvision(spec, file)
        elif spec.startswith(ROBUSTBENCH):
            classifier = _from_robustbench(spec, file)
        else:
            classifier = _from_card(spec, file)
    card = classifier.card
    if shape is not None:
        _check_shape(card, shape)
    if classes is not None and card.classes is not None and classes > card.classes:
        raise SpecError(f"{card.name} tells {card.classes} classes apart, but the data has {classes}.")
    return classifier


def _from_card(spec: str, file: Weights | None) -> Classifier:
    known = bundled_cards()
    if spec.endswith(".json"):
        path = Path(spec)
    elif spec in known:
        path = known[spec]
    else:
        raise unknown_name(
            "classifier", spec, known,
            hint="Or give a card file (.json), torchvision:NAME, robustbench:NAME or python:FILE.py:FUNCTION.",
        )  # fmt: skip
    card = Card.load(path)
    network = build_network(card.architecture, **card.options)
    if file is not None:
        card = _with_weights(card, file)
    elif card.weights is None:
        raise SpecError(f"card {path} names no weights: add the field 'weights', or pass --weights FILE.")
    else:
        file = read_weights(path.parent / card.weights)
        if card.sha256 not in (None, file.sha256):
            raise ArtifactError(
                f"weights {file.path}: the sha256 is {file.sha256}, the card of {card.name} says {card.sha256}; "
                "restore the file, or pass --weights FILE to use another."
            )
    file.load_into(network, card.architecture)
    return Classifier(network.eval(), card, weights_sha256=file.sha256)


def _from_torchvision(spec: str, file: Weights | None) -> Classifier:
    if file is None:
        return _pretrained(spec)
    plain = outline(spec)
    channels, classes = 3, 1000
    first = file.tensors.get(f"{input_layer(plain)[0]}.weight")
    last = file.tensors.get(f"{_output_layer(plain)}.weight")
    if first is not None and first.ndim == 4:
        channels = first.shape[1]
    if last is not None and last.ndim in (2, 4):
        classes = last.shape[0]
    network = build_network(spec, channels=channels, classes=classes)
    file.load_into(network, spec)
    card = Card(
        name=spec,
        title=f"{spec} with weights from {file.path.name}",
        architecture=spec,
        options={"channels": channels, "classes": classes},
        mean=IMAGENET_MEAN if channels == 3 else (),
        std=IMAGENET_STD if channels == 3 else (),
        channels=channels,
        classes=classes,
        weights=str(file.path),
        sha256=file.sha256,
    )
    return Classifier(network.eval(), card, weights_sha256=file.sha256)


def _pretrained(spec: str) -> Classifier:
    """Torchvision's own weights, from its cache or its server."""
    import torchvision  # here, not above: slow to import, and seldom needed

    outline(spec)  # refuses an unknown name, with the nearest one
    name = spec.removeprefix(TORCHVISION)
    try:
        with impatient(), contextlib.redirect_stdout(sys.stderr):
            network = torchvision.models.get_model(name, weights="DEFAULT")
        weights = torchvision.models.get_model_weights(name).DEFAULT
        preset, categories = weights.transforms(), tuple(weights.meta["categories"])
    except Exception as error:  # no network, no space, a broken cache: for the user it is all the same
        raise ArtifactError(
            f"{spec} needs --weights FILE: its weights are not cached and could not be downloaded "
            f"({type(error).__name__}: {first_line(error)})."
        ) from error
    card = Card(
        name=spec,
        title=f"{name}, trained on ImageNet by torchvision",
        architecture=spec,
        options={"channels": 3, "classes": len(categories)},
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        channels=3,
        classes=len(categories),
        class_names=categories,
        source="torchvision",
        data="imagenet",
        kind="standard",
    )
    return Classifier(network.eval(), card)


def _from_robustbench(spec: str, file: Weights | None) -> Classifier:
    """A model of RobustBench's zoo, with its own weights or those of a file; it normalises by itself."""
    if file is None:
        zoo, network = load_zoo(spec)
        return Classifier(network, zoo.card(network))
    zoo, network = build_zoo(spec)
    file.load_into(network, str(zoo))
    return Classifier(network.eval(), _with_weights(zoo.card(network), file), weights_sha256=file.sha256)


def _output_layer(network: nn.Module) -> str:
    """Name of the last layer with 1000 outputs."""
    outputs = [
        name
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == 1000)
        or (isinstance(module, nn.Conv2d) and module.out_channels == 1000)
    ]
    return outputs[-1] if outputs else ""


def _from_python(spec: str, file: Weights | None) -> Classifier:
    made = call_user_function(spec)
    if not isinstance(made, nn.Module):
        raise SpecError(f"{spec}: the function must return a torch.nn.Module, got {type(made).__name__}.")
    place, _, function = spec.removeprefix(PYTHON).rpartition(":")
    return _from_module(made, f"{Path(place).stem}.{function}", spec, file)


def _from_module(module: nn.Module, name: str, source: str, file: Weights | None) -> Classifier:
    if isinstance(module, Classifier):
        if file is None:
            return module
        network = copy.deepcopy(module.network)
        file.load_into(network, module.card.architecture)
        return Classifier(network, _with_weights(module.card, file), weights_sha256=file.sha256)
    architecture = type(module).__name__
    card = Card(name=name, title=f"{architecture} of the user", architecture=architecture, source=source)
    if file is None:
        return Classifier(module, card)
    file.load_into(module, architecture)
    return Classifier(module, _with_weights(card, file), weights_sha256=file.sha256)


def _with_weights(card: Card, file: Weights) -> Card:
    """The card of other weights in the same network: what was claimed of the old ones is gone."""
    name = f"{card.name}+{file.path.stem}"
    return replace(card, name=name, weights=str(file.path), sha256=file.sha256, figures=(), threat=None, kind="user")


def _copy(module: nn.Module) -> nn.Module:
    """A deep copy, or the module itself where it holds something that cannot be copied."""
    if isinstance(module, Classifier):
        return module
    try:
        return copy.deepcopy(module)
    except _UNCOPYABLE:
        return module


def _check_shape(card: Card, shape: tuple[int, ...]) -> None:
    channels, size = shape[0], tuple(shape[1:])
    if card.channels is not None and channels != card.channels:
        raise SpecError(f"{card.name} takes images of {card.channels} channels, the data has {channels}.")
    if card.size is not None and size != card.size:
        raise SpecError(
            f"{card.name} takes images of {card.size[0]} x {card.size[1]} pixels, the data has {size[0]} x {size[1]}."
        )


def check_classifier(
    classifier: Classifier, x: Tensor, y: Tensor | None = None, *, rng: object | None = None
) -> list[str]:
    """Refuse a classifier that cannot be evaluated, before any work is done.

    Torch's global generator, and the classifier's weights and buffers are left as found.

    Args:
        classifier: what is to be evaluated.
        x: (B, C, H, W) float32 in [0, 1], a small batch.
        y: (N,) int64 labels, of this batch or of all the examples that are to be evaluated.
        rng: given to the classifier as second argument, for stochastic ones.

    Returns:
        Health flags: "probabilities" when the outputs are probabilities, not logits.

    Raises:
        SpecError: wrong images, a forward pass that raises, an output that is not finite (B, K) logits, a label that is
            not in 0 .. K - 1, or a network handed over in training mode where that changes what it says.
    """
    card = classifier.card
    _check_shape(card, tuple(x.shape[1:]))
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        logits = _forward(classifier, x, rng)
        _check_logits(card, logits, len(x), y)
        if classifier.was_training:
            _check_mode(classifier, x, rng, logits)
    sums = logits.double().sum(1)
    in_range = bool(((logits >= -1e-5) & (logits <= 1 + 1e-5)).all())
    probabilities = in_range and logits.shape[1] >= 2 and bool(((sums - 1).abs() <= 1e-5).all())
    return ["probabilities"] if probabilities else []


def _forward(classifier: nn.Module, x: Tensor, rng: object | None) -> Tensor:
    try:
        return classifier(x) if rng is None else classifier(x, rng)  # type: ignore[no-any-return]
    except Exception as error:  # a user's network may raise anything
        card: Card = classifier.card  # type: ignore[assignment]
        raise SpecError(
            f"{card.name} raised {type(error).__name__} on a batch of shape {tuple(x.shape)}, values in [0, 1]: "
            f"{first_line(error)}."
        ) from error


def _check_logits(card: Card, logits: object, batch: int, y: Tensor | None) -> None:
    expected = f"{card.name} must return logits of shape ({batch}, K) for {batch} images"
    if not isinstance(logits, Tensor):
        raise SpecError(f"{expected}, got a {type(logits).__name__}; return the tensor of logits only.")
    if logits.ndim != 2 or len(logits) != batch or not logits.is_floating_point():
        raise SpecError(f"{expected}, floating point, got shape {tuple(logits.shape)} of {logits.dtype}.")
    classes = logits.shape[1]
    if classes == 0 or (classes == 1 and y is not None and bool((y > 0).any())):
        raise SpecError(
            f"{expected}, one for each class of the data, got shape {tuple(logits.shape)}; "
            "for two classes return (B, 2) logits, such as torch.cat([-z, z], 1) / 2."
        )
    if card.classes is not None and classes != card.classes:
        raise SpecError(f"{card.name} returned {classes} logits an image, its card says {card.classes} classes.")
    if not bool(logits.isfinite().all()):
        row = int((~logits.isfinite()).any(1).nonzero()[0])
        raise SpecError(f"{card.name} returned NaN or infinite logits, first in row {row} of the batch.")
    if y is not None and len(y) and (int(y.min()) < 0 or int(y.max()) >= classes):
        place = int(((y < 0) | (y >= classes)).nonzero()[0])
        raise SpecError(
            f"label {int(y[place])} of example {place} is not in 0 .. {classes - 1}: {card.name} has {classes} classes."
        )


def _check_mode(classifier: Classifier, x: Tensor, rng: object | None, logits: Tensor) -> None:
    """Refuse a network that says something else in the mode in which it was handed over than in eval mode."""
    name, source = classifier.card.name, classifier.card.source or ""
    advice = "call .eval() on it first"
    if source.startswith(PYTHON):
        advice = f"call .eval() in {source.rpartition(':')[2]} before returning it"
    try:
        as_given = copy.deepcopy(classifier)
    except _UNCOPYABLE as error:
        raise SpecError(f"{name} is in training mode, and no copy can be made to try it in: {advice}.") from error
    for module_name, module in as_given.network.named_modules():
        module.training = module_name in classifier.training_modules
    try:
        first, second = (_forward(as_given, x, rng) for _ in range(2))
    except SpecError as error:
        raise SpecError(f"{name} is in training mode, and fails in it: {advice} ({error})") from error
    if not all(torch.allclose(answer, logits, rtol=1e-4, atol=1e-5) for answer in (first, second)):
        raise SpecError(f"{name} is in training mode, in which its answers differ: {advice}.")
