"""The user's own Python: `python:MODULE:FUNCTION` and `python:FILE.py:FUNCTION`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from robustgen.errors import SpecError, unknown_name

__all__ = ["PYTHON", "call_user_function", "first_line"]

PYTHON = "python:"


def call_user_function(spec: str) -> object:
    """What a function of the user returns, called without arguments.

    Args:
        spec: `python:MODULE:FUNCTION`, found from the current folder too, or `python:FILE.py:FUNCTION`, which may
            import its neighbours.

    Raises:
        SpecError: file, module or function is missing, or its code raises: the message says what.
    """
    place, separator, name = spec.removeprefix(PYTHON).rpartition(":")
    if not separator or not place or not name:
        raise SpecError(f"'{spec}' must be python:MODULE:FUNCTION or python:FILE.py:FUNCTION.")
    with _importable(Path(place).resolve().parent if place.endswith(".py") else Path.cwd()):
        module = _import(place)
        function = getattr(module, name, None)
        if function is None:
            raise unknown_name(f"function in {place}:", name, [key for key in vars(module) if not key.startswith("_")])
        if not callable(function):
            raise SpecError(f"{spec}: {name} is a {type(function).__name__}; expected a function without arguments.")
        try:
            made: object = function()
        except (Exception, SystemExit) as error:
            raise SpecError(f"{spec}: {name}() raised {type(error).__name__}: {first_line(error)}.") from error
    return made


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "no message"


def _import(place: str) -> ModuleType:
    if place.endswith(".py") and not Path(place).is_file():
        raise SpecError(f"{PYTHON}{place}: there is no such file.")
    try:
        return _run_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{place}.".startswith(f"{error.name}."):
            raise SpecError(
                f"{PYTHON}{place}: there is no module '{error.name}' here; for a file write python:FILE.py:FUNCTION."
            ) from error
        raise SpecError(f"{PYTHON}{place}: importing it raised {type(error).__name__}: {first_line(error)}.") from error


def _run_file(path: Path) -> ModuleType:
    located = importlib.util.spec_from_file_location(f"robustgen_user_{path.stem}", path)
    assert located is not None  # Python has a loader for every name ending in .py
    assert located.loader is not None
    module = importlib.util.module_from_spec(located)
    sys.modules[module.__name__] = module  # where dataclasses and copies look for the classes of the file
    located.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let imports find what lies in a folder, as `python FILE.py` does."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
