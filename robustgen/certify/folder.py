"""Folders of work that is done example by example: whose they are, who writes them, which of their lines are whole.

spec.json      what was asked, see `Spec`; other work is refused in its folder
JOURNAL        one line an example, appended as it is finished; a crash can cut off its last line only
record.json    totals, written last
lock           who writes, while somebody does
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from robustgen import durable
from robustgen.errors import RecordError, SpecError
from robustgen.spec import Spec

__all__ = ["check_same", "claim", "holds_fields", "parse_lines", "read_object", "save_array", "slug", "whole_lines"]

T = TypeVar("T")


def slug(name: str) -> str:
    """The last part of a name, fit for the name of a folder."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name.rpartition("/")[2])


def holds_fields(folder: Path, *names: str) -> bool:
    """Whether there is a spec.json with these fields, which tells what kind of work it is."""
    path = folder / "spec.json"
    return path.is_file() and set(names) <= read_object(path).keys()


def check_same(folder: Path, spec: Spec) -> None:
    """Refuse a folder that holds other work.

    Raises:
        RecordError: its spec.json is another one; the fields that differ are named.
    """
    path = folder / "spec.json"
    differing = spec.differences(type(spec).from_json(read_object(path), str(path)))
    if differing:
        raise RecordError(
            f"--out: {folder} holds another {spec.kind()} (asked / there: {'; '.join(differing)}); name another folder."
        )


def claim(folder: Path, spec: Spec) -> durable.FolderLock:
    """Make a folder, or open one of the same work, for this process alone.

    Raises:
        SpecError: it is a file, or in use by another process.
        RecordError: it holds other work.
    """
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"--out: {folder} is a file; name a folder.")
    with durable.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "spec.json").is_file():
            check_same(folder, spec)
        lock = durable.FolderLock(folder)
        if not (folder / "spec.json").is_file():
            durable.write_json(folder / "spec.json", asdict(spec))
    return lock


def whole_lines(path: Path, read: Callable[[str], T]) -> list[T]:
    """What the lines of a journal say; a line cut off by a crash is removed, and no journal has no lines.

    Args:
        path: of the journal.
        read: a line to what it says; it raises ValueError, TypeError or SpecError where it says nothing.

    Raises:
        RecordError: a whole line that cannot be read; its number is named.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    durable.cut(path, whole)
    return parse_lines(content[:whole].decode("utf-8", "replace"), path, read)


def parse_lines(text: str, path: Path, read: Callable[[str], T]) -> list[T]:
    """What each line of the text of a journal says; see `whole_lines`."""
    found = []
    for place, line in enumerate(text.splitlines(), 1):
        try:
            found.append(read(line))
        except (ValueError, TypeError, SpecError) as error:
            raise RecordError(f"{path}, line {place}, cannot be read: {error}") from None
    return found


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        RecordError: it cannot be read, or holds something else.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from None
    if not isinstance(held, dict):
        raise RecordError(f"{path}: expected a JSON object, got {type(held).__name__}.")
    return held


def save_array(path: Path, values: Tensor) -> None:
    """A tensor on the CPU as a .npy file, whole or not at all."""
    content = io.BytesIO()
    np.save(content, values.numpy())
    durable.replace(path, content.getvalue())
