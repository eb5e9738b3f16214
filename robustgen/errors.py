"""Every error robustgen raises on purpose.

    RobustgenError            exit 1: the run failed
    ├── SpecError             exit 2: the request is wrong; one sentence, no traceback
    ├── ArtifactError         exit 2: a file is missing, truncated, unsafe or not what its card says
    ├── RemoteError           exit 1: a server does not answer as agreed, or its budget is spent
    ├── AttackError           exit 1: an attack left the threat model, or the model stopped giving numbers
    └── RecordError           exit 2: a run folder of another identity, schema or state

A message says what was expected, what came, which field or file, and what to type.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["ArtifactError", "AttackError", "RecordError", "RemoteError", "RobustgenError", "SpecError", "unknown_name"]


class RobustgenError(Exception):
    """Root of the tree; `exit_code` is what the command line returns for it."""

    exit_code = 1


class SpecError(RobustgenError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class BusyError(SpecError):
    """Another process is writing there."""


class ArtifactError(RobustgenError):
    """A file of data or weights cannot be used."""

    exit_code = 2


class RemoteError(RobustgenError):
    """A classifier at an address cannot be asked any more."""


class AttackError(RobustgenError):
    """Something went wrong inside the run."""


class RecordError(RobustgenError):
    """A run folder cannot be read or continued."""

    exit_code = 2


def unknown_name(kind: str, name: str, known: Iterable[str], *, hint: str = "") -> SpecError:
    """The error for a name nobody registered, with the nearest one that exists."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}."
    return SpecError(f"unknown {kind} '{name}'{guess}{' ' + hint if hint else ''}")
