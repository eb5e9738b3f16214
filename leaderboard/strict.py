"""Reading JSON that a stranger may have written: one object, no key twice, no number that JSON has not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from robustgen.errors import ArtifactError, SpecError

__all__ = ["read_object", "read_with"]

T = TypeVar("T")
_LARGEST = 16_000_000  # bytes; a card or a record is far below


def read_object(path: Path) -> dict[str, Any]:
    """The one JSON object of a file.

    Raises:
        ArtifactError: the file is missing, larger than 16 MB, or not JSON.
        SpecError: it is JSON, but holds a key twice, NaN or infinity, or something other than one object.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ArtifactError(f"{path} has {path.stat().st_size:,} bytes, at most {_LARGEST:,} are read.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from None
    try:
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise SpecError(f"{path} must be one JSON object, got {type(content).__name__}.")
    return content


def read_with(path: Path, build: Callable[[dict[str, Any]], T]) -> T:
    """What `build` makes of the object of a file; its errors name the file."""
    content = read_object(path)
    try:
        return build(content)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise SpecError(f"the key '{key}' stands twice; keep one.")
        table[key] = value
    return table


def _refuse(name: str) -> float:
    raise SpecError(f"{name} is no number of JSON; write null for what was not measured.")
