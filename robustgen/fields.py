"""Fields of a recipe: each has a rule, a predicate and the words that say what is wanted."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from robustgen.errors import ArtifactError, SpecError, unknown_name

__all__ = [
    "FILE_NAME",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SEED",
    "SHARE",
    "TEXT",
    "WHOLE",
    "Fits",
    "Rule",
    "check_fields",
    "check_value",
    "count",
    "differences",
    "each",
    "number",
    "one_of",
    "or_none",
    "parse_duration",
    "read_recipe",
    "read_section",
    "read_tables",
    "text",
]

Fits = Callable[[Any], bool]
Rule = tuple[Fits, str]
Section = TypeVar("Section")
R = TypeVar("R")


def text(value: Any) -> bool:
    """A text that is not empty."""
    return isinstance(value, str) and bool(value.strip())


def count(value: Any) -> bool:
    """A whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def number(low: float, high: float, *, open_low: bool = False) -> Fits:
    """In [low, high), or in (low, high)."""

    def fits(value: Any) -> bool:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        return plain and low <= value < high and not (open_low and value == low)

    return fits


def or_none(fits: Fits) -> Fits:
    """None, or what fits."""
    return lambda value: value is None or fits(value)


def each(fits: Fits) -> Fits:
    """A list of what fits; lists have become tuples when rules are asked."""
    return lambda value: isinstance(value, tuple) and all(fits(item) for item in value)


def one_of(*known: str) -> Rule:
    """One of these texts."""
    return (lambda value: value in known, f"one of {', '.join(known)}")


_above_zero = number(0, math.inf, open_low=True)
POSITIVE: Rule = (_above_zero, "a number above 0")
NOT_NEGATIVE: Rule = (number(0, math.inf), "a number >= 0")
SHARE: Rule = (number(0, 1), "a number in [0, 1)")
WHOLE: Rule = (count, "a whole number >= 1")
TEXT: Rule = (text, "a text that is not empty")
SEED: Rule = (lambda value: value is not False and (value == 0 or count(value)), "a whole number >= 0")
FILE_NAME: Rule = (
    lambda value: isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value) is not None,
    "letters, digits and .-_ only, because files are named after it",
)


def check_fields(section: Any, table: str, rules: Mapping[str, Rule]) -> None:
    """Turn lists into tuples, and whole numbers into floats where a field is one, and refuse what breaks its rule.

    Args:
        section: a frozen dataclass, from its `__post_init__`.
        table: its table in the file, which rules and messages name before the field; "" for the top.
        rules: by "table.field"; a field without one takes anything.

    Raises:
        SpecError: a value breaks the rule of its field.
    """
    for entry in fields(section):
        where = f"{table}.{entry.name}" if table else entry.name
        if where not in rules:
            continue
        value = getattr(section, entry.name)
        if isinstance(value, list):
            value = tuple(value)
        check_value(where, value, rules[where])
        if str(entry.type).startswith("float") and value is not None:
            value = float(value)
        object.__setattr__(section, entry.name, value)


def check_value(where: str, value: Any, rule: Rule) -> None:
    """Refuse a value that breaks its rule.

    Raises:
        SpecError: names the field, what is wanted and what came.
    """
    fits, wanted = rule
    if not fits(value):
        raise SpecError(f"{where} must be {wanted}, got {value!r}.")


def read_section(kind: type[Section], name: str, table: Mapping[str, Any]) -> Section:
    """A section from its table.

    Raises:
        SpecError: a field is missing or unknown.
    """
    entries = fields(kind)  # type: ignore[arg-type]  # every section is a dataclass
    known = [entry.name for entry in entries]
    for key in table:
        if key not in known:
            raise unknown_name("field", f"{name}.{key}", [f"{name}.{entry}" for entry in known])
    for entry in entries:
        if entry.default is MISSING and entry.default_factory is MISSING and entry.name not in table:
            raise SpecError(f"the field '{name}.{entry.name}' is missing.")
    return kind(**table)


def read_tables(
    content: Mapping[str, Any], sections: tuple[str, ...], optional: tuple[str, ...] = ("seed", "licence")
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The fields at the top of a recipe, where name and description are, and its tables, all of which it needs.

    Raises:
        SpecError: a field or a table is missing or unknown.
    """
    required = ("name", "description")
    for key in content:
        if key not in (*required, *optional, *sections):
            raise unknown_name("field", key, (*required, *optional, *sections))
    for key in sections:
        if content.get(key) is None:
            raise SpecError(f"the table [{key}] is missing.")
        if not isinstance(content[key], Mapping):
            raise SpecError(f"{key} must be a table [{key}].")
    for key in required:
        if key not in content:
            raise SpecError(f"the field '{key}' is missing.")
    top = {key: content[key] for key in (*required, *optional) if key in content}
    return top, {key: dict(content[key]) for key in sections}


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The fields that differ between two tables of tables, such as "training.lr: 0.1 here, 0.2 there"."""
    here, there = _flat(mine), _flat(theirs)
    return [
        f"{key}: {here.get(key)} here, {there.get(key)} there"
        for key in sorted(here | there)
        if here.get(key) != there.get(key)
    ]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def read_recipe(name_or_path: str | Path, known: Mapping[str, Path], build: Callable[[Mapping[str, Any]], R]) -> R:
    """A bundled recipe by name, or a file ending in .toml.

    Raises:
        SpecError: no recipe of that name, or its content is not one; the field is named.
        ArtifactError: the file cannot be read.
    """
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
        return build(content)
    except SpecError as error:
        raise SpecError(f"recipe {path}: {error}") from error


def parse_duration(text: str) -> float:
    """Seconds of "2h", "30m", "45s", "1h30m" or "90".

    Raises:
        SpecError: not of that form, or zero.
    """
    figure = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{figure}h)?(?:{figure}m)?(?:{figure}s?)?", text.strip().lower())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise SpecError(f"a duration reads like 2h, 30m, 45s or 90 (seconds), got '{text}'.")
    return total
