"""The attacks of a plan as they are run: each with its label, its threat model and its condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustgen.attacks.base import Attack
from robustgen.attacks.plans import Entry, Few, Limited, Near, Plan, Rung
from robustgen.threat import ThreatModel

__all__ = ["Stage", "stages_of"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One attack under one threat model, with the label that tables and records give it."""

    label: str
    attack: Attack
    threat: ThreatModel
    within: float | None = None  # only examples whose margin earlier attacks brought below this share of the clean one
    most: float | None = None  # only where at most this share of the examples classified right is left
    rung: Rung | None = None  # how its gradient crosses a purifier
    queries: int | None = None  # budget of an example
    elsewhere: bool = False  # on surrogates

    @property
    def blind(self) -> bool:
        """Whether it attacks another classifier than the one that is judged."""
        return self.elsewhere or (self.rung is not None and self.rung.crossing == "transfer")


def stages_of(
    plans: Sequence[Plan], threats: Sequence[ThreatModel], *, elsewhere: bool
) -> tuple[tuple[Stage, ...], ...]:
    """The attacks of a plan under each threat model in turn, those of its growth, and those of its escalation."""
    parts: tuple[list[Stage], ...] = ([], [], [])
    for plan, threat in zip(plans, threats, strict=True):
        alike = sum(other.norm == threat.norm for other in threats) > 1
        prefix = "" if len(threats) == 1 else f"{threat if alike else threat.norm}/"
        labels = iter([prefix + label for label in plan.labels()])
        groups: tuple[Sequence[Entry], ...] = (plan.attacks, plan.growth, plan.escalation)
        for part, entries in zip(parts, groups, strict=True):
            part += [_stage(next(labels), entry, threat, elsewhere) for entry in entries]
    return tuple(tuple(part) for part in parts)


def _stage(label: str, entry: Entry, threat: ThreatModel, elsewhere: bool) -> Stage:
    if isinstance(entry, Limited):
        return Stage(label, entry.attack, threat, queries=entry.queries)
    if isinstance(entry, Near):
        return Stage(label, entry.attack, threat, within=entry.within)
    if isinstance(entry, Few):
        return Stage(label, entry.attack, threat, most=entry.most)
    if isinstance(entry, Rung):
        return Stage(label, entry.attack, threat, within=entry.within, rung=entry)
    return Stage(label, entry, threat, elsewhere=elsewhere)
