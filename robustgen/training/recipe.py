"""Recipes: one TOML file says everything that a training depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from robustgen.errors import SpecError, unknown_name
from robustgen.fields import (
    FILE_NAME,
    NOT_NEGATIVE,
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
from robustgen.training.augment import AUGMENTATIONS, MIXES
from robustgen.training.generated import parse_shares
from robustgen.training.method import Method, make_method

__all__ = [
    "DataSettings",
    "GeneratedSettings",
    "NetworkSettings",
    "Recipe",
    "TrainingSettings",
    "list_recipes",
    "load_recipe",
    "parse_duration",
]

_RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is trained on.

    Args:
        name: as for `robustgen.data.load_data`.
        validation: number of training images held out.
        images: how many of the others are used; None for all.
        mean: per channel, subtracted from images in [0, 1]; empty for no normalisation.
        std: per channel, what the difference is divided by.
    """

    name: str
    validation: int = 1024
    images: int | None = None
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
    """What is trained.

    Args:
        architecture: one that `robustgen.nets.build_network` knows.
        options: its own.
        start: classifier whose weights it begins with, as for `load_classifier`; None for random ones.
    """

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    start: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "network", _RULES)
        with torch.device("meta"):  # a wrong option is found here, at no cost
            build_network(self.architecture, **self.options)


@dataclass(frozen=True, kw_only=True)
class GeneratedSettings:
    """Generated images among the real ones.

    Args:
        files: "FILE.npz:SHARE" each, SHARE of every batch; what is left of the batch is real.
        labels: a classifier that labels files without labels.
    """

    files: tuple[str, ...]
    labels: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "generated", _RULES)
        parse_shares(self.files)

    @property
    def shares(self) -> tuple[tuple[str, float], ...]:
        """(file, share) each."""
        return parse_shares(self.files)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How it is trained.

    Args:
        method: a name in `robustgen.training.method.METHODS`.
        options: the method's own, such as { beta = 5 }.
        epochs: passes over the real training images, whatever the mix with generated ones.
        batch_size: images a step, over all processes.
        optimizer: "sgd" (Nesterov momentum 0.9) or "adamw" (betas 0.9 and 0.99).
        lr: the highest learning rate.
        weight_decay: of weights of two or more dimensions.
        warmup: share of all steps in which the learning rate rises to `lr`.
        schedule: what it does then: "linear" or "cosine" down to 0, "one-cycle" (cosine, also on the way up, from
            lr / 25), "piecewise" (a tenth after each of `milestones`), or "constant".
        milestones: for "piecewise": shares of all steps.
        label_smoothing: in [0, 1).
        ema_decay: of the average of the weights, a step, in [0, 1); 0 for no averaging.
        augment: names in `AUGMENTATIONS` and `MIXES`, applied in this order.
        threat: such as "linf:8/255"; optional for method "standard", which is then measured with it.
        steps: gradient steps of the attack; None for the method's default.
        rel_step: their length as a fraction of eps; None for the method's default.
        awp: size of the adversarial perturbation of the weights, relative to them; 0 for none.
        validation_steps: steps of the PGD that chooses the best epoch, on the held-out images.
        validate_every: epochs from one such measurement to the next; the last epoch always has one.
        precision: "float32", "bfloat16" (autocast), or "auto" for bfloat16 where the processor multiplies it.
    """

    method: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    options: dict[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.0
    warmup: float = 0.0
    schedule: str = "linear"
    milestones: tuple[float, ...] = (0.5, 0.75)
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    augment: tuple[str, ...] = ()
    threat: str | None = None
    steps: int | None = None
    rel_step: float | None = None
    awp: float = 0.0
    validation_steps: int = 20
    validate_every: int = 1
    precision: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "training", _RULES)
        for key, known in _CLOSED.items():
            if getattr(self, key) not in known:
                raise unknown_name(f"training.{key}", getattr(self, key), known)
        for name in self.augment:
            if name not in AUGMENTATIONS and name not in MIXES:
                raise unknown_name("training.augment", name, [*AUGMENTATIONS, *MIXES])
        if not isinstance(self.options, dict):
            raise SpecError(f"training.options must be a table such as {{ beta = 5 }}, got {self.options!r}.")
        if self.awp and self.make_method().threat is None:
            raise SpecError("training.awp: perturbing weights needs an adversarial method; remove the line.")
        self.make_method()

    def make_method(self) -> Method:
        """The method with its parameters.

        Raises:
            SpecError: threat, steps, rel_step or options do not suit it.
        """
        threat = None if self.threat is None else ThreatModel.parse(self.threat)
        given = {"steps": self.steps, "rel_step": self.rel_step}
        options = self.options | {key: value for key, value in given.items() if value is not None}
        return make_method(self.method, threat=threat, label_smoothing=self.label_smoothing, options=options)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the result of a training depends on, but for the number of threads and the kind of processor."""

    name: str
    description: str
    data: DataSettings
    network: NetworkSettings
    training: TrainingSettings
    generated: GeneratedSettings | None = None
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
        content = {key: value for key, value in content.items() if key != "generated" or value is not None}
        sections = ("data", "network", "training", "generated")
        top, tables = read_tables(content, sections if "generated" in content else sections[:3])
        options = tables["network"].pop("options", {})
        architecture, start = (tables["network"].pop(key, None) for key in ("architecture", "start"))
        if not isinstance(options, dict) or tables["network"]:
            key = next(iter(tables["network"]), "options")
            raise SpecError(f"network.{key}: options of the architecture belong into the table [network.options].")
        return cls(
            **top,
            data=read_section(DataSettings, "data", tables["data"]),
            network=NetworkSettings(architecture=architecture, options=options, start=start),
            training=read_section(TrainingSettings, "training", tables["training"]),
            generated=read_section(GeneratedSettings, "generated", tables["generated"])
            if "generated" in tables
            else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain tables, ready for JSON."""
        return asdict(self)

    def changed(self, *, generated: str | None = None, labels: str | None = None, seed: int | None = None) -> Recipe:
        """The recipe with what a command line says instead; None leaves a field as it is.

        Args:
            generated: "a.npz:0.5,b.npz:0.2"; "" for no generated images.
            labels: a classifier that labels files without labels.
            seed: another seed.

        Raises:
            SpecError: files or shares that make no sense, or labels without files.
        """
        held = self.generated
        if generated is not None:
            files = tuple(f"{path}:{share:g}" for path, share in parse_shares(generated))
            held = GeneratedSettings(files=files, labels=None if held is None else held.labels) if files else None
        if labels is not None:
            if held is None:
                raise SpecError("--labels is for generated images; name them: --generated FILE.npz:0.7.")
            held = replace(held, labels=labels)
        return replace(self, generated=held, seed=self.seed if seed is None else seed)

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
    "optimizer": ("sgd", "adamw"),
    "schedule": ("linear", "cosine", "one-cycle", "piecewise", "constant"),
    "precision": ("auto", "float32", "bfloat16"),
}

_RULES: dict[str, Rule] = {
    "name": FILE_NAME,
    "description": TEXT,
    "licence": (or_none(text), "a text"),
    "seed": SEED,
    "data.name": TEXT,
    "data.validation": WHOLE,
    "data.images": (or_none(count), "a whole number >= 1"),
    "data.mean": (each(number(-math.inf, math.inf)), "a list of numbers, one a channel"),
    "data.std": (each(POSITIVE[0]), "a list of numbers above 0, one a channel"),
    "network.architecture": (text, 'a text such as "small-resnet"'),
    "network.start": (or_none(text), 'a text such as "fmnist-standard"'),
    "training.method": TEXT,
    "training.epochs": WHOLE,
    "training.batch_size": (lambda value: count(value) and value >= 2, "a whole number >= 2"),
    "training.optimizer": TEXT,
    "training.lr": POSITIVE,
    "training.weight_decay": NOT_NEGATIVE,
    "training.warmup": SHARE,
    "training.schedule": TEXT,
    "training.label_smoothing": SHARE,
    "training.ema_decay": SHARE,
    "training.augment": (each(text), 'a list such as ["flip", "crop"]'),
    "training.threat": (or_none(text), 'a text such as "linf:8/255"'),
    "training.steps": (or_none(count), "a whole number >= 1"),
    "training.rel_step": (or_none(POSITIVE[0]), "a number above 0"),
    "training.milestones": (each(SHARE[0]), "a list of shares of the steps, in [0, 1)"),
    "training.awp": SHARE,
    "training.validation_steps": WHOLE,
    "training.validate_every": WHOLE,
    "training.precision": TEXT,
    "generated.files": (each(text), 'a list such as ["a.npz:0.7"]'),
    "generated.labels": (or_none(text), 'a text such as "fmnist-standard"'),
}
