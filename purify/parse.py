"""Purifiers as typed: "diffpure:t=0.1,steps=20" and "repeat:rounds=2,of=one-shot:sigma=0.2"."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from robustgen.errors import SpecError, unknown_name
from robustgen.purify.base import PURIFIERS, Purifier

__all__ = ["describe", "parse_purifier", "settings"]

_KINDS: dict[str, tuple[type[Any], str]] = {
    "int": (int, "an integer"),
    "float": (float, "a number"),
    "str": (str, "a text"),
}


def parse_purifier(text: str) -> Purifier:
    """A purifier by name, with settings after a colon, commas between them.

    Raises:
        SpecError: unknown purifier or setting (the nearest is named), or a value that cannot be.
    """
    name, _, rest = text.strip().partition(":")
    kind = PURIFIERS[name]
    known = {entry.name: str(entry.type).split(" |")[0] for entry in fields(kind)}  # type: ignore[arg-type]
    options: dict[str, Any] = {}
    while rest:
        key, equals, rest = rest.partition("=")
        if not equals:
            raise SpecError(f"purifier '{name}': expected setting=value, got '{key}'; e.g. diffpure:t=0.1,steps=20.")
        key = key.strip()
        if key not in known:
            raise unknown_name(f"setting of {name}", key, known)
        if known[key] == "Purifier":  # takes all that follows, commas included
            options[key], rest = parse_purifier(rest), ""
            continue
        value, _, rest = rest.partition(",")
        options[key] = _convert(name, key, value.strip(), known[key])
    return kind(**options)


def _convert(name: str, key: str, value: str, kind: str) -> Any:
    convert, wanted = _KINDS[kind]
    try:
        return convert(value)
    except ValueError:
        raise SpecError(f"purifier '{name}': {key} must be {wanted}, got '{value}'.") from None


def settings(kind: type[Purifier]) -> dict[str, Any]:
    """Name and default of each setting."""
    return {
        entry.name: entry.default if entry.default_factory is MISSING else entry.default_factory()
        for entry in fields(kind)  # type: ignore[arg-type]
    }


def describe(purifier: Purifier) -> str:
    """The purifier as one would type it, every setting that is not None named."""
    parts = []
    for key in settings(type(purifier)):
        value = getattr(purifier, key)
        if value is not None:
            parts.append(f"{key}={describe(value) if isinstance(value, Purifier) else _plain(value)}")
    name = PURIFIERS.name_of(purifier)
    return f"{name}:{','.join(parts)}" if parts else name


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
