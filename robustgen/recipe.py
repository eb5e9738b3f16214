"""Recipes: one TOML file says everything that a training depends on."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from robustgen.adversarial_training import METHODS, Method
from robustgen.errors import ArtifactError, SpecError, unknown_name
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
_TOP_KEYS = ("name", "description", "licence", "seed", "data", "network", "training")

Section = TypeVar("Section", "DataSettings", "TrainingSettings")


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
        _check(self, "data")
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
        _check(self, "network")
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
        _check(self, "training")
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
        _check(self, "")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Recipe:
        """From tables as in a recipe's file, or from `to_dict`.

        Raises:
            SpecError: a field is missing, unknown, or not what it should be.
        """
        for key in content:
            if key not in _TOP_KEYS:
                raise unknown_name("field", key, _TOP_KEYS)
        tables: dict[str, dict[str, Any]] = {}
        for key in ("data", "network", "training"):
            table = content.get(key)
            if not isinstance(table, dict):
                raise SpecError(
                    f"the table [{key}] is missing." if table is None else f"{key} must be a table [{key}]."
                )
            tables[key] = dict(table)
        for key in ("name", "description"):
            if key not in content:
                raise SpecError(f"the field '{key}' is missing.")
        options = tables["network"].pop("options", {})
        architecture = tables["network"].pop("architecture", None)
        if not isinstance(options, dict) or tables["network"]:
            key = next(iter(tables["network"]), "options")
            raise SpecError(f"network.{key}: options of the architecture belong into the table [network.options].")
        return cls(
            **{key: content[key] for key in ("name", "description", "seed", "licence") if key in content},
            data=_section(DataSettings, "data", tables["data"]),
            network=NetworkSettings(architecture=architecture, options=options),
            training=_section(TrainingSettings, "training", tables["training"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain tables, ready for JSON."""
        return asdict(self)

    def differences(self, other: Recipe) -> list[str]:
        """The fields that differ, such as "training.lr: 0.1 here, 0.2 there"."""
        mine, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        return [
            f"{key}: {mine.get(key)} here, {theirs.get(key)} there"
            for key in sorted(mine | theirs)
            if mine.get(key) != theirs.get(key)
        ]


def list_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with robustgen, sorted by name."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.toml"))}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A bundled recipe by name, or a file ending in .toml.

    Raises:
        SpecError: no recipe of that name, or its content is not one; the field is named.
        ArtifactError: the file cannot be read.
    """
    known = list_recipes()
    if str(name_or_path) in known:
        path = known[str(name_or_path)]
    elif str(name_or_path).endswith(".toml"):
        path = Path(name_or_path).expanduser()
    else:
        raise unknown_name("recipe", str(name_or_path), known, hint="Or give a file ending in .toml.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"recipe {path}: there is no such file.") from None
    except OSError as error:
        raise ArtifactError(f"recipe {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise SpecError(f"recipe {path} is not TOML: {error}.") from error
    try:
        return Recipe.from_dict(content)
    except SpecError as error:
        raise SpecError(f"recipe {path}: {error}") from error


def parse_duration(text: str) -> float:
    """Seconds of "2h", "30m", "45s", "1h30m" or "90".

    Raises:
        SpecError: not of that form, or zero.
    """
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s?)?", text.strip().lower())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise SpecError(f"a duration reads like 2h, 30m, 45s or 90 (seconds), got '{text}'.")
    return total


def _section(kind: type[Section], name: str, table: dict[str, Any]) -> Section:
    known = [entry.name for entry in fields(kind)]
    for key in table:
        if key not in known:
            raise unknown_name("field", f"{name}.{key}", [f"{name}.{entry}" for entry in known])
    required = [entry.name for entry in fields(kind) if entry.default is MISSING and entry.default_factory is MISSING]
    for key in required:
        if key not in table:
            raise SpecError(f"the field '{name}.{key}' is missing.")
    return kind(**table)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _check(section: Any, table: str) -> None:
    """Turn lists into tuples and whole numbers into floats where wanted, and refuse what does not fit."""
    for entry in fields(section):
        where = f"{table}.{entry.name}" if table else entry.name
        if where not in _RULES:
            continue
        value = getattr(section, entry.name)
        if isinstance(value, list):
            value = tuple(value)
        fits, wanted = _RULES[where]
        if not fits(value):
            raise SpecError(f"{where} must be {wanted}, got {value!r}.")
        if entry.name in _FLOATS and value is not None:
            value = float(value)
        object.__setattr__(section, entry.name, value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(low: float, high: float, *, open_low: bool = False) -> Callable[[Any], bool]:
    """In [low, high), or in (low, high)."""

    def fits(value: Any) -> bool:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        return plain and low <= value < high and not (open_low and value == low)

    return fits


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(fits(item) for item in value)


_CLOSED = {
    "method": tuple(METHODS),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("linear", "cosine", "constant"),
    "precision": ("auto", "float32", "bfloat16"),
}
_FLOATS = ("lr", "weight_decay", "warmup", "label_smoothing", "ema_decay", "rel_step")
_POSITIVE = _number(0, math.inf, open_low=True)
_SHARE = (_number(0, 1), "a number in [0, 1)")
_WHOLE = (_count, "a whole number >= 1")
_TEXT = (_text, "a text that is not empty")

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (
        lambda value: isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value) is not None,
        "letters, digits and .-_ only, because files are named after it",
    ),
    "description": _TEXT,
    "licence": (_or_none(_text), "a text"),
    "seed": (lambda value: value is not False and (value == 0 or _count(value)), "a whole number >= 0"),
    "data.name": _TEXT,
    "data.validation": _WHOLE,
    "data.mean": (_each(_number(-math.inf, math.inf)), "a list of numbers, one a channel"),
    "data.std": (_each(_POSITIVE), "a list of numbers above 0, one a channel"),
    "network.architecture": (_text, 'a text such as "small-resnet"'),
    "training.method": _TEXT,
    "training.epochs": _WHOLE,
    "training.batch_size": (lambda value: _count(value) and value >= 2, "a whole number >= 2"),
    "training.optimizer": _TEXT,
    "training.lr": (_POSITIVE, "a number above 0"),
    "training.weight_decay": (_number(0, math.inf), "a number >= 0"),
    "training.warmup": _SHARE,
    "training.schedule": _TEXT,
    "training.label_smoothing": _SHARE,
    "training.ema_decay": _SHARE,
    "training.augment": (_each(_text), 'a list such as ["flip", "crop"]'),
    "training.threat": (_or_none(_text), 'a text such as "linf:8/255"'),
    "training.steps": (_or_none(_count), "a whole number >= 1"),
    "training.rel_step": (_or_none(_POSITIVE), "a number above 0"),
    "training.precision": _TEXT,
}
