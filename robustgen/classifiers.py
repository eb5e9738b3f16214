"""Classifiers by name: bundled ones, cards, libraries, functions, addresses, and purifiers before any of them."""

from __future__ import annotations

import contextlib
import copy
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from robustgen.cards import Card, bundled_cards
from robustgen.classifier import UNCOPYABLE, Classifier, check_shape
from robustgen.defended import defend, split_name
from robustgen.errors import ArtifactError, SpecError, unknown_name
from robustgen.files import impatient
from robustgen.nets import TORCHVISION, build_network, input_layer, outline
from robustgen.remote import load_remote
from robustgen.request import is_address
from robustgen.robustbench_zoo import ROBUSTBENCH, build_zoo, load_zoo
from robustgen.usercode import PYTHON, call_user_function, first_line
from robustgen.weights import Weights, read_weights

__all__ = ["load_classifier"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    if isinstance(spec, str) and "@" in spec and (split := split_name(spec)) is not None:
        inner = load_classifier(split[1], weights=weights, shape=shape, classes=classes)
        return defend(inner, split[0])
    if is_address(spec):
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
        check_shape(card, shape)
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
    except UNCOPYABLE:
        return module
