"""Recipes of detectors: one TOML file says everything that a training depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robustgen.detectors.network import NetworkSettings
from robustgen.detectors.scenes import SceneSettings
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
    one_of,
    or_none,
    read_recipe,
    read_section,
    read_tables,
    text,
)

__all__ = ["DataSettings", "DetectorRecipe", "TrainingSettings", "list_detector_recipes", "load_detector_recipe"]

_RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "detector"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The pictures that scenes are composed of.

    Args:
        name: as for `robustgen.data.load_data`; grey on black.
        validation: number of training pictures held out, of which the validation scenes are made.
        scenes: how many validation scenes.
    """

    name: str
    validation: int = 1024
    scenes: int = 256

    def __post_init__(self) -> None:
        check_fields(self, "data", _RULES)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How it is trained: AdamW, scenes that are new in each step.

    Args:
        steps: of the optimizer.
        batch_size: scenes a step.
        lr: the highest learning rate.
        weight_decay: of weights of two or more dimensions.
        warmup: share of all steps in which the learning rate rises to `lr`.
        schedule: what it does then: "linear" or "cosine" down to 0, or "constant".
        ema_decay: of the average of the weights, a step.
        validate_every: steps from one measurement to the next.
        precision: "float32", "bfloat16" (autocast), or "auto" for bfloat16 where the processor multiplies it.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float = 0.0
    warmup: float = 0.0
    schedule: str = "cosine"
    ema_decay: float = 0.998
    validate_every: int = 1000
    precision: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "training", _RULES)


@dataclass(frozen=True, kw_only=True)
class DetectorRecipe:
    """Everything that a trained detector depends on, but for the number of threads and the kind of processor."""

    name: str
    description: str
    data: DataSettings
    scenes: SceneSettings
    network: NetworkSettings
    training: TrainingSettings
    seed: int = 0
    licence: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "", _RULES)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DetectorRecipe:
        """From tables as in a recipe's file, or from `to_dict`.

        Raises:
            SpecError: a field is missing, unknown, or not what it should be.
        """
        top, tables = read_tables(content, ("data", "scenes", "network", "training"))
        return cls(
            **top,
            data=read_section(DataSettings, "data", tables["data"]),
            scenes=read_section(SceneSettings, "scenes", tables["scenes"]),
            network=read_section(NetworkSettings, "network", tables["network"]),
            training=read_section(TrainingSettings, "training", tables["training"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain tables, ready for JSON."""
        return asdict(self)

    def differences(self, other: DetectorRecipe) -> list[str]:
        """The fields that differ, such as "training.lr: 0.1 here, 0.2 there"."""
        return differences(self.to_dict(), other.to_dict())


def list_detector_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with robustgen, sorted by name."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.toml"))}


def load_detector_recipe(name_or_path: str | Path) -> DetectorRecipe:
    """A bundled recipe by name, or a file ending in .toml.

    Raises:
        SpecError: no recipe of that name, or its content is not one; the field is named.
        ArtifactError: the file cannot be read.
    """
    return read_recipe(name_or_path, list_detector_recipes(), DetectorRecipe.from_dict)


_RULES: dict[str, Rule] = {
    "name": FILE_NAME,
    "description": TEXT,
    "licence": (or_none(text), "a text"),
    "seed": SEED,
    "data.name": TEXT,
    "data.validation": WHOLE,
    "data.scenes": WHOLE,
    "training.steps": WHOLE,
    "training.batch_size": WHOLE,
    "training.lr": POSITIVE,
    "training.weight_decay": NOT_NEGATIVE,
    "training.warmup": SHARE,
    "training.schedule": one_of("linear", "cosine", "constant"),
    "training.ema_decay": SHARE,
    "training.validate_every": WHOLE,
    "training.precision": one_of("auto", "float32", "bfloat16"),
}
