"""What a check of a finished run finds, whatever kind of run it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustgen.spec import Spec

__all__ = ["Findings", "Verification"]

_SHOWN = 5  # ids named in one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was checked, and what is wrong.

    Attributes:
        run: the folder.
        checked: one line a check that was made, with what it covered.
        wrong: one sentence a contradiction; empty where everything holds.
        doubtful: examples whose outcome here differs by no more than rounding on another machine explains, or chance
            where a random classifier's own cannot be repeated.
        unchecked: what could not be checked here, and how it could be.
        evidence: what the figures were computed from.
        doubt: what makes an example doubtful, in words.
    """

    run: Path
    checked: tuple[str, ...]
    wrong: tuple[str, ...]
    doubtful: tuple[int, ...] = ()
    unchecked: tuple[str, ...] = ()
    evidence: str = "witnesses"
    doubt: str = "margins so small that rounding may decide"

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the record."""
        return not self.wrong


class Findings:
    """Sentences about one run, gathered check by check."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.checked: list[str] = []
        self.wrong: list[str] = []
        self.doubtful: set[int] = set()

    def identity(self, spec: Spec, recorded: str, said: Mapping[str, Any]) -> bool:
        """The specification hashes to what the record says, and both say the same. False: something is wrong."""
        mine = spec.identity()
        if mine != recorded:
            self.wrong.append(f"spec.json was edited: it hashes to {mine[:12]}, the record says {recorded[:12]}.")
        differing = sorted(key for key, value in spec.to_json().items() if said.get(key) != value)
        if differing:
            self.wrong.append(f"record.json and spec.json disagree on {', '.join(differing)}.")
        self.checked.append(f"identity {recorded[:12]}")
        return not self.wrong

    def rows(self, ids: Sequence[int], wanted: Sequence[int], file: str) -> bool:
        """Every example of the run once, and no other."""
        times = Counter(ids)
        twice = [id_ for id_, count in times.items() if count > 1]
        missing, foreign = sorted(set(wanted) - set(times)), sorted(set(times) - set(wanted))
        self.say(twice, f"stands twice in {file}", f"stand twice in {file}")
        self.say(missing, f"of the run is missing in {file}", f"of the run are missing in {file}")
        self.say(foreign, "does not belong to the run", "do not belong to the run")
        self.checked.append(f"rows: {len(ids)} of {len(wanted)} examples")
        return not self.wrong

    def say(self, ids: Sequence[int], one: str, several: str) -> None:
        """One sentence about some examples, if there are any."""
        if ids:
            shown = ", ".join(map(str, ids[:_SHOWN])) + (" and others" if len(ids) > _SHOWN else "")
            self.wrong.append(f"example{'s' * (len(ids) > 1)} {shown} {several if len(ids) > 1 else one}.")
