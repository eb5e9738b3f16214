"""Reading JSON that a stranger may have written: one object, no key twice, no number that JSON has not.

Numbers of thousands of digits, numbers that overflow to infinity and deep nesting are refused too: each is legal JSON,
and each breaks something further on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from robustgen.errors import ArtifactError, SpecError

__all__ = ["parse_object", "plain", "read_lines", "read_object", "read_with"]

T = TypeVar("T")
_LARGEST = 16_000_000  # bytes; a card or a record is far below
_DEEPEST = 32  # levels of nesting
_LONGEST = 40  # characters of a number
_WIDEST = 2**64  # whole numbers stay below; a seed may come near


def read_object(path: Path) -> dict[str, Any]:
    """The one JSON object of a file.

    Raises:
        ArtifactError: the file is missing, larger than 16 MB, or not JSON.
        SpecError: it is JSON, but holds a key twice, a number that is none or too large, something nested too deep, or
            something other than one object.
    """
    return parse_object(_text_of(path, _LARGEST), str(path))


def read_lines(path: Path, most: int) -> Iterator[dict[str, Any]]:
    """The JSON object of each line of a file of at most so many bytes; see `read_object`."""
    for number, line in enumerate(_text_of(path, most).splitlines(), 1):
        yield parse_object(line, f"{path}, line {number}")


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The one JSON object of a text; `where` it stands is for messages. See `read_object`."""
    try:
        _check_depth(text)
        content = json.loads(
            text, object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite, parse_int=_whole
        )
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None
    except ValueError as error:
        raise ArtifactError(f"{where} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise SpecError(f"{where} must be one JSON object, got {type(content).__name__}.")
    return content


def read_with(path: Path, build: Callable[[dict[str, Any]], T]) -> T:
    """What `build` makes of the object of a file; its errors name the file."""
    content = read_object(path)
    try:
        return build(content)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def plain(text: str) -> str:
    """A text for a terminal: what would act on it, or turn the direction of writing, is shown as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _text_of(path: Path, most: int) -> str:
    try:
        if path.stat().st_size > most:
            raise ArtifactError(f"{path} has {path.stat().st_size:,} bytes, at most {most:,} are read.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from None


def _check_depth(text: str) -> None:
    """Count brackets outside of texts, so that no parser has to go down."""
    depth = 0
    for found in re.finditer(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > _DEEPEST:
            raise SpecError(f"it is nested more than {_DEEPEST} levels deep, as no card or record is.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise SpecError(f"the key '{key}' stands twice; keep one.")
        table[key] = value
    return table


def _refuse(name: str) -> float:
    raise SpecError(f"{name} is no number of JSON; write null for what was not measured.")


def _finite(text: str) -> float:
    value = float(text) if len(text) <= _LONGEST else math.inf
    if not math.isfinite(value):
        raise SpecError(f"the number {_short(text)} is too large or too long; at most {_LONGEST} characters are read.")
    return value


def _whole(text: str) -> int:
    value = int(text) if len(text) <= _LONGEST else _WIDEST
    if abs(value) >= _WIDEST:
        raise SpecError(f"the whole number {_short(text)} is too large; at most 2^64 - 1 is read.")
    return value


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:8]}... of {len(text):,} characters"
