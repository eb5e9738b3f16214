"""Cards: one JSON file a model, which says what it is, where its weights are and what is claimed of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from robustgen.errors import ArtifactError, SpecError, unknown_name

__all__ = ["Card", "Kind", "bundled_cards"]

Kind = Literal["standard", "robust", "decoy", "user"]

_ZOO = Path(__file__).resolve().parent / "zoo"


@dataclass(frozen=True, kw_only=True)
class Card:
    """All that is known of one classifier except its weights.

    Args:
        name: what the classifier is called in tables and on the command line.
        title: one line for `robustgen list`.
        architecture: a name that `robustgen.nets.build_network` knows; free text for a user's own module.
        description: as many sentences as it takes.
        options: keyword arguments of the architecture.
        weights: file name, relative to the card; None when the weights are in memory.
        sha256: of the weights file, 64 hexadecimal digits; None when it is not to be checked.
        mean: per channel, subtracted from images in [0, 1]; empty for no normalisation.
        std: per channel, what the difference is divided by; empty for no normalisation.
        channels: of the images; None when not known.
        size: (H, W) of the images in pixels; None for any.
        classes: number of logits; None when not known.
        class_names: one a class, or empty.
        licence: of the weights.
        source: who made them and how: a paper, an address or a command.
        threat: the threat model that it was trained for, such as "linf:0.1"; None for none.
        sigma: of the noise that it was trained for, in pixels of [0, 1], to be smoothed with; None for none.
        data: name of the data that it belongs to, such as "fashion-mnist"; None when not known.
        kind: "standard", "robust", "decoy" (looks robust and is not) or "user".
        figures: what was measured; each holds at least `metric`, `value`, `n` and `protocol`.

    Raises:
        SpecError: a field is missing, unknown, or of another type than said here.
    """

    name: str
    title: str
    architecture: str
    description: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    sha256: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: int | None = None
    size: tuple[int, int] | None = None
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    licence: str | None = None
    source: str | None = None
    threat: str | None = None
    sigma: float | None = None
    data: str | None = None
    kind: Kind = "user"
    figures: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, list):  # JSON has no tuples
                value = tuple(value)
                object.__setattr__(self, entry.name, value)
            fits, wanted = _RULES[entry.name]
            if not fits(value):
                raise SpecError(f"card '{self.name}': {entry.name} must be {wanted}, got {value!r}.")
        self._check_lengths()
        for number, figure in enumerate(self.figures):
            _check_figure(f"card '{self.name}': figures[{number}]", figure)

    def _check_lengths(self) -> None:
        if len(self.mean) != len(self.std):
            raise SpecError(
                f"card '{self.name}': mean and std need one number a channel each, "
                f"got {len(self.mean)} and {len(self.std)}."
            )
        if self.mean and self.channels is not None and len(self.mean) != self.channels:
            raise SpecError(f"card '{self.name}': mean has {len(self.mean)} numbers for {self.channels} channels.")
        if self.class_names and len(self.class_names) != self.classes:
            raise SpecError(
                f"card '{self.name}': class_names has {len(self.class_names)} names for {self.classes} classes."
            )

    @classmethod
    def load(cls, path: Path) -> Card:
        """Read and check a card file.

        Raises:
            ArtifactError: the file is missing or is not JSON.
            SpecError: it is JSON, but not a card.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"card {path} cannot be read: {error}.") from error
        if not isinstance(content, dict):
            raise SpecError(f"card {path} must be one JSON object, got {type(content).__name__}.")
        known = [entry.name for entry in fields(cls)]
        for key in content:
            if key not in known:
                raise unknown_name(f"field in card {path}:", key, known)
        for key in ("name", "title", "architecture", "channels", "classes", "kind"):
            if content.get(key) is None:
                raise SpecError(f"card {path} lacks the field '{key}'.")
        try:
            return cls(**content)
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        """Write the card as sorted, indented JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def bundled_cards() -> dict[str, Path]:
    """Names and card files of the classifiers that come with robustgen, sorted by name."""
    return {path.stem: path for path in sorted(_ZOO.glob("*.json"))}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(fits(item) for item in value)


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_text, "a text that is not empty"),
    "title": (_is_text, "a text that is not empty"),
    "architecture": (_is_text, "a text that is not empty"),
    "description": (lambda value: isinstance(value, str), "a text"),
    "options": (lambda value: isinstance(value, dict), "an object of the architecture's options"),
    "weights": (_or_none(_is_text), "a file name or null"),
    "sha256": (_or_none(_matches("[0-9a-f]{64}")), "64 lower-case hexadecimal digits or null"),
    "mean": (_each(_is_number), "a list of numbers, one a channel"),
    "std": (_each(lambda value: _is_number(value) and value > 0), "a list of numbers above 0, one a channel"),
    "channels": (_or_none(_is_count), "a whole number >= 1"),
    "size": (_or_none(lambda value: _each(_is_count)(value) and len(value) == 2), "[height, width] or null"),
    "classes": (_or_none(_is_count), "a whole number >= 1"),
    "class_names": (_each(_is_text), "a list of texts, one a class"),
    "licence": (_or_none(_is_text), "a text or null"),
    "source": (_or_none(_is_text), "a text or null"),
    "threat": (_or_none(_matches(r"(linf|l2|l1):\S+")), "a threat model such as 'linf:8/255' or null"),
    "sigma": (_or_none(lambda value: _is_number(value) and value > 0), "a number above 0 or null"),
    "data": (_or_none(_is_text), "a name of data or null"),
    "kind": (lambda value: value in get_args(Kind), f"one of {', '.join(get_args(Kind))}"),
    "figures": (_each(lambda value: isinstance(value, dict)), "a list of objects"),
}

_FIGURE_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "metric": (_is_text, "a text such as 'robust_accuracy'"),
    "value": (_is_number, "a number"),
    "n": (_is_count, "the number of images, >= 1"),
    "protocol": (_is_text, "a text that says how it was measured"),
}


def _check_figure(where: str, figure: dict[str, Any]) -> None:
    for key, (fits, wanted) in _FIGURE_RULES.items():
        if key not in figure:
            raise SpecError(f"{where} lacks the field '{key}': {wanted}.")
        if not fits(figure[key]):
            raise SpecError(f"{where}: {key} must be {wanted}, got {figure[key]!r}.")
