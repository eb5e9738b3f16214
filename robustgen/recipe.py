"""Recipes: one TOML file says everything that a training depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from robustgen.adversarial_training import METHODS, Method
from robustgen.errors import SpecError, unknown_name
from robustgen.fields import (
    FILE_NAME,
    POSITIVE,
    SEED,
    SHARE,
    TEXT,
    WHOLE,
    Rule,
    check_fields,
    count,
    differences,
    each,
    number,
    or_none,
    parse_duration,
    read_recipe,
    read_section,
    read_tables,
    text,
)
from robustgen.nets import build_network
from robustgen.threat import ThreatModel
from robustgen.training_data import AUGMENTATIONS

__all__ = [
    "DataSettings",
    "NetworkSettings",
    "Recipe",
    "TrainingSettings",
    "list_recipes",
    "load_recipe",
    "parse_duration",
]

_RECIPES = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is trained on.

    Args:
        name: as for `robustgen.data.load_data`.
        validation: number of training images held out.
        mean: per channel, subtracted from images in [0, 1]; empty for no normalisation.
        std: per channel, what the difference is divided by.
    """

    name: str
    validation: int = 1024
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, "data", _RULES)
        if len(self.mean) != len(self.std):
            raise SpecError(
                f"data.mean and data.std need one number a channel each, got {len(self.mean)} and {len(self.std)}."
            )


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What is trained: an architecture that `robustgen.nets.build_network` knows, and its options."""

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "network", _RULES)
        with torch.device("meta"):  # a wrong option is found here, at no cost
            build_network(self.architecture, **self.options)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How it is trained.

    Args:
        method: a name in `robustgen.adversarial_training.METHODS`.
        epochs: passes over the training images.
        batch_size: images a step.
        optimizer: "sgd" (Nesterov momentum 0.9) or "adamw" (betas 0.9 and 0.99).
        lr: the highest learning rate.
        weight_decay: of the optimizer.
        warmup: share of all steps in which the learning rate rises linearly to `lr`.
        schedule: how it falls to 0 after that: "linear", "cosine", or "constant" for not at all.
        label_smoothing: in [0, 1).
        ema_decay: of the average of the weights, a step, in [0, 1); 0 for no averaging.
        augment: "flip" and "crop", in this order.
        threat: such as "linf:8/255"; optional for method "standard", which is then measured with it.
        steps: gradient steps of the attack; None for the method's default.
        rel_step: their length as a fraction of eps; None for the method's default.
        precision: "float32", "bfloat16" (autocast), or "auto" for bfloat16 where the processor multiplies it.
    """

    method: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float = 0.0
    warmup: float = 0.0
    schedule: str = "linear"
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    augment: tuple[str, ...] = ()
    threat: str | None = None
    steps: int | None = None
    rel_step: float | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "training", _RULES)
        for key, known in _CLOSED.items():
            if getattr(self, key) not in known:
                raise unknown_name(f"training.{key}", getattr(self, key), known)
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise unknown_name("training.augment", name, AUGMENTATIONS)
        self.make_method()

    def make_method(self) -> Method:
        """The method with its parameters.

        Raises:
            SpecError: threat, steps and rel_step do not suit it.
        """
        threat = None if self.threat is None else ThreatModel.parse(self.threat)
        return METHODS[self.method].make(threat, self.label_smoothing, self.steps, self.rel_step)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the result of a training depends on, but for the number of threads and the kind of processor."""

    name: str
    description: str
    data: DataSettings
    network: NetworkSettings
    training: TrainingSettings
    seed: int = 0
    licence: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "", _RULES)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Recipe:
        """From tables as in a recipe's file, or from `to_dict`.

        Raises:
            SpecError: a field is missing, unknown, or not what it should be.
        """
        top, tables = read_tables(content, ("data", "network", "training"))
        options = tables["network"].pop("options", {})
        architecture = tables["network"].pop("architecture", None)
        if not isinstance(options, dict) or tables["network"]:
            key = next(iter(tables["network"]), "options")
            raise SpecError(f"network.{key}: options of the architecture belong into the table [network.options].")
        return cls(
            **top,
            data=read_section(DataSettings, "data", tables["data"]),
            network=NetworkSettings(architecture=architecture, options=options),
            training=read_section(TrainingSettings, "training", tables["training"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain tables, ready for JSON."""
        return asdict(self)

    def differences(self, other: Recipe) -> list[str]:
        """The fields that differ, such as "training.lr: 0.1 here, 0.2 there"."""
        return differences(self.to_dict(), other.to_dict())


def list_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with robustgen, sorted by name."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.toml"))}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A bundled recipe by name, or a file ending in .toml.

    Raises:
        SpecError: no recipe of that name, or its content is not one; the field is named.
        ArtifactError: the file cannot be read.
    """
    return read_recipe(name_or_path, list_recipes(), Recipe.from_dict)


_CLOSED = {
    "method": tuple(METHODS),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("linear", "cosine", "constant"),
    "precision": ("auto", "float32", "bfloat16"),
}

_RULES: dict[str, Rule] = {
    "name": FILE_NAME,
    "description": TEXT,
    "licence": (or_none(text), "a text"),
    "seed": SEED,
    "data.name": TEXT,
    "data.validation": WHOLE,
    "data.mean": (each(number(-math.inf, math.inf)), "a list of numbers, one a channel"),
    "data.std": (each(POSITIVE[0]), "a list of numbers above 0, one a channel"),
    "network.architecture": (text, 'a text such as "small-resnet"'),
    "training.method": TEXT,
    "training.epochs": WHOLE,
    "training.batch_size": (lambda value: count(value) and value >= 2, "a whole number >= 2"),
    "training.optimizer": TEXT,
    "training.lr": POSITIVE,
    "training.weight_decay": (number(0, math.inf), "a number >= 0"),
    "training.warmup": SHARE,
    "training.schedule": TEXT,
    "training.label_smoothing": SHARE,
    "training.ema_decay": SHARE,
    "training.augment": (each(text), 'a list such as ["flip", "crop"]'),
    "training.threat": (or_none(text), 'a text such as "linf:8/255"'),
    "training.steps": (or_none(count), "a whole number >= 1"),
    "training.rel_step": (or_none(POSITIVE[0]), "a number above 0"),
    "training.precision": TEXT,
}
