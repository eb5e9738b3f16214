"""What an experiment is run with, read from TOML: by name from a folder of robustgen's, or from a user's own file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustgen.errors import SpecError, unknown_name

__all__ = ["in_folder", "read_toml"]

_RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def in_folder(name: str, prefix: str = "") -> dict[str, Path]:
    """Files of a folder of recipes by name, without a prefix that they have in common."""
    return {path.stem.removeprefix(prefix): path for path in sorted((_RECIPES / name).glob(f"{prefix}*.toml"))}


def read_toml(name: str, known: Mapping[str, Path], kind: str) -> dict[str, Any]:
    """The tables of a file.

    Args:
        name: one of `known`, or a file ending in .toml.
        known: files by name.
        kind: what it is called in errors.

    Raises:
        SpecError: no such name, or a file that cannot be read.
    """
    if name not in known and not name.endswith(".toml"):
        raise unknown_name(kind, name, known, hint="Or give a file ending in .toml.")
    path = known.get(name, Path(name).expanduser())
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{kind} {path} cannot be read: {error}.") from error
