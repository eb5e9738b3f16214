"""Recipes of generators: one TOML file says everything that a training depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from robustgen.errors import SpecError
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
    differences,
    each,
    number,
    one_of,
    or_none,
    read_recipe,
    read_section,
    read_tables,
    text,
)
from robustgen.generator.network import NetworkSettings
from robustgen.generator.objective import SCHEDULES

__all__ = [
    "DataSettings",
    "GeneratorRecipe",
    "ObjectiveSettings",
    "TrainingSettings",
    "list_generator_recipes",
    "load_generator_recipe",
]

_RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "generator"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is trained on.

    Args:
        name: as for `robustgen.data.load_data`.
        validation: number of training images held out.
        images: how many of the others are trained on; None for all.
        conditional: whether the network is told the class.
    """

    name: str
    validation: int = 1024
    images: int | None = None
    conditional: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "data", _RULES)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The loss.

    Args:
        kind: "edm" or "ddpm".
        sigma_data: for "edm": standard deviation of the data in [-1, 1]; None to measure it on the training images.
        mean: for "edm": of the data, one a channel; None to measure it.
        p_mean, p_std: for "edm": of ln sigma.
        schedule: for "ddpm": "linear" or "cosine".
        steps: for "ddpm": T.
        prediction: for "ddpm": "epsilon" or "v_prediction".
    """

    kind: str
    sigma_data: float | None = None
    mean: tuple[float, ...] | None = None
    p_mean: float = -1.2
    p_std: float = 1.2
    schedule: str = "linear"
    steps: int = 1000
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"

    def __post_init__(self) -> None:
        check_fields(self, "objective", _RULES)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How it is trained; what counts images counts those shown, repetitions included.

    Args:
        images: how many in all.
        batch_size: images a step, over all processes.
        optimizer: "adam" (betas 0.9 and 0.999) or "adamw" (betas 0.9 and 0.99).
        lr: the highest learning rate.
        weight_decay: of the optimizer.
        warmup: images over which the learning rate rises linearly.
        schedule: how it falls to 0 after that: "cosine", or "constant" for not at all.
        clip: largest norm of the gradient; None for no limit.
        ema_half_life: of the average of the weights, in images.
        ema_ramp: the half-life is at most this share of the images shown so far.
        label_dropout: share of the labels withheld, so that guidance works.
        augment: probability of each non-leaking augmentation; 0 for none.
        flip: whether images are mirrored at random, also without augmentation.
        precision: "float32", "bfloat16", or "auto" for bfloat16 where the processor multiplies it.
        grid_seconds: between two pictures of samples.
        metrics_images: shown between two lines of metrics.
    """

    images: int
    batch_size: int
    lr: float
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: str = "cosine"
    clip: float | None = None
    ema_half_life: int = 500_000
    ema_ramp: float = 0.05
    label_dropout: float = 0.0
    augment: float = 0.0
    flip: bool = False
    precision: str = "auto"
    grid_seconds: float = 600.0
    metrics_images: int = 50_000

    def __post_init__(self) -> None:
        check_fields(self, "training", _RULES)
        if self.images < self.batch_size:
            raise SpecError(
                f"training.images must be at least training.batch_size, {self.batch_size}, got {self.images}."
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return math.ceil(self.images / self.batch_size)


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe:
    """Everything that a trained generator depends on, but for the number of threads and the kind of processor."""

    name: str
    description: str
    data: DataSettings
    network: NetworkSettings
    objective: ObjectiveSettings
    training: TrainingSettings
    seed: int = 0
    licence: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "", _RULES)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> GeneratorRecipe:
        """From tables as in a recipe's file, or from `to_dict`.

        Raises:
            SpecError: a field is missing, unknown, or not what it should be.
        """
        top, tables = read_tables(content, ("data", "network", "objective", "training"))
        return cls(
            **top,
            data=read_section(DataSettings, "data", tables["data"]),
            network=read_section(NetworkSettings, "network", tables["network"]),
            objective=read_section(ObjectiveSettings, "objective", tables["objective"]),
            training=read_section(TrainingSettings, "training", tables["training"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain tables, ready for JSON."""
        return asdict(self)

    def differences(self, other: GeneratorRecipe) -> list[str]:
        """The fields that differ, such as "training.lr: 0.1 here, 0.2 there"."""
        return differences(self.to_dict(), other.to_dict())


def list_generator_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with robustgen, sorted by name."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.toml"))}


def load_generator_recipe(name_or_path: str | Path) -> GeneratorRecipe:
    """A bundled recipe by name, or a file ending in .toml.

    Raises:
        SpecError: no recipe of that name, or its content is not one; the field is named.
        ArtifactError: the file cannot be read.
    """
    return read_recipe(name_or_path, list_generator_recipes(), GeneratorRecipe.from_dict)


_flag: Rule = (lambda value: isinstance(value, bool), "true or false")
_finite = number(-math.inf, math.inf)

_RULES: dict[str, Rule] = {
    "name": FILE_NAME,
    "description": TEXT,
    "licence": (or_none(text), "a text"),
    "seed": SEED,
    "data.name": TEXT,
    "data.validation": WHOLE,
    "data.images": (or_none(WHOLE[0]), "a whole number >= 1"),
    "data.conditional": _flag,
    "objective.kind": one_of("edm", "ddpm"),
    "objective.sigma_data": (or_none(POSITIVE[0]), "a number above 0"),
    "objective.mean": (or_none(each(_finite)), "a list of numbers, one a channel"),
    "objective.p_mean": (_finite, "a number"),
    "objective.p_std": POSITIVE,
    "objective.schedule": one_of(*SCHEDULES),
    "objective.steps": (lambda value: WHOLE[0](value) and value >= 2, "a whole number >= 2"),
    "objective.prediction": one_of("epsilon", "v_prediction"),
    "training.images": WHOLE,
    "training.batch_size": WHOLE,
    "training.optimizer": one_of("adam", "adamw"),
    "training.lr": POSITIVE,
    "training.weight_decay": NOT_NEGATIVE,
    "training.warmup": SEED,
    "training.schedule": one_of("cosine", "constant"),
    "training.clip": (or_none(POSITIVE[0]), "a number above 0"),
    "training.ema_half_life": WHOLE,
    "training.ema_ramp": POSITIVE,
    "training.label_dropout": SHARE,
    "training.augment": SHARE,
    "training.flip": _flag,
    "training.precision": one_of("auto", "float32", "bfloat16"),
    "training.grid_seconds": POSITIVE,
    "training.metrics_images": WHOLE,
}
