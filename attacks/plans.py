"""Plans: which attacks are run, in which order, with which parameters.

Each attack sees only the examples that no attack before it has broken. A plan prints a protocol string that says
exactly what it does; the string is part of a run's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from robustgen.adversarials import Adversarials
from robustgen.attacks.apgd import APGDCE, APGDDLR, APGDT
from robustgen.attacks.base import Attack
from robustgen.attacks.fab import FAB, FABT
from robustgen.attacks.fmn import FMNT
from robustgen.attacks.losses import LOSSES, Loss, ProbabilityMargin, TargetedMargin
from robustgen.attacks.square import Square
from robustgen.errors import SpecError, unknown_name
from robustgen.registry import ATTACKS, PLANS, register_plan
from robustgen.threat import ThreatModel

__all__ = [
    "Entry", "Few", "Limited", "Near", "Plan", "Rung", "attack_of", "build_attack", "describe", "parameters",
    "parse_attack", "parse_plan",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Near:
    """An attack for those examples only that the attacks before it brought near to breaking.

    Attributes:
        attack: what is run.
        within: the smallest margin seen so far, as a share of the margin of the clean image, must lie below this.
    """

    attack: Attack
    within: float


@dataclass(frozen=True, slots=True)
class Few:
    """An attack for what is left where few are: on networks that lose most examples, margins fall late.

    Attributes:
        attack: what is run.
        most: at most this share of the examples classified right may be left by the attacks before it.
    """

    attack: Attack
    most: float


@dataclass(frozen=True, slots=True)
class Rung:
    """An attack on a classifier behind a purifier, and how its gradient crosses that.

    Attributes:
        attack: what is run.
        crossing: a mode of `robustgen.purify.gradients`; "transfer" for the classifier without its purifier, where
            only the last point counts.
        eot: draws averaged in each query; 1 where nothing is random.
        warm: begin where the attacks before came nearest.
        within: only examples that the attacks before brought near, as `Near` says; None for all.
    """

    attack: Attack
    crossing: str
    eot: int = 1
    warm: bool = False
    within: float | None = None


@dataclass(frozen=True, slots=True)
class Limited:
    """An attack with a budget: an example is given up after the round in which it has been sent forward so often."""

    attack: Attack
    queries: int


Entry = Attack | Near | Few | Rung | Limited
"""What a plan lists."""


def attack_of(entry: Entry) -> Attack:
    """The attack without its condition, its crossing or its budget."""
    return entry.attack if isinstance(entry, Near | Few | Rung | Limited) else entry


@dataclass(frozen=True, slots=True)
class Plan:
    """A named list of attacks with a version that rises whenever its figures could change.

    Attributes:
        attacks: each sees what those before it have left standing.
        escalation: run as well where a health flag says that gradients may lie.
        individual: every attack sees every correctly classified example and gets a figure of its own.
        eot: draws averaged in each query of a stochastic classifier.
        growth: run after the others, one after the other, until one breaks next to nothing.
        goal: what counts as a success, where the plan says so; as `--goal` does.
        source: the TOML file that it was read from, byte for byte; None for a plan that came with robustgen.
    """

    name: str
    version: int
    attacks: tuple[Entry, ...]
    escalation: tuple[Attack, ...] = ()
    individual: bool = False
    eot: int = 1
    growth: tuple[Rung, ...] = ()
    goal: str | None = None
    source: bytes | None = field(default=None, repr=False)

    @property
    def sha256(self) -> str:
        """Of the file; empty where there is none."""
        return "" if self.source is None else sha256(self.source).hexdigest()

    def protocol(self, classes: int) -> str:
        """Everything that is run, in one line, for a classifier with so many classes."""
        parts = [" > ".join(describe(attack, classes) for attack in self.attacks)]
        if self.individual:
            parts.append("each attack on all correctly classified examples")
        if self.eot > 1:
            parts.append(f"eot={self.eot}")
        if self.growth:
            parts.append("until one breaks next to nothing " + " > ".join(describe(a, classes) for a in self.growth))
        if self.escalation:
            parts.append("where flagged also " + " > ".join(describe(attack, classes) for attack in self.escalation))
        return f"{self.name}/{self.version}: " + "; ".join(parts)

    def unconditional(self) -> tuple[Attack, ...]:
        """The attacks without their condition, crossing or budget; escalation and growth left out."""
        return tuple(attack_of(entry) for entry in self.attacks)

    def for_all_examples(self) -> Plan:
        """The same plan without what only some examples see: its conditional attacks, budgets and escalation."""
        kept = tuple(e.attack if isinstance(e, Limited) else e for e in self.attacks if not isinstance(e, Near | Few))
        return replace(self, attacks=kept, escalation=(), growth=())

    def for_deterministic(self) -> Plan:
        """The same plan for a classifier that gives the same answer each time: one draw a query."""
        attacks = tuple(replace(a, eot=1) if isinstance(a, Rung) else a for a in self.attacks)
        return replace(self, attacks=attacks, growth=tuple(replace(rung, eot=1) for rung in self.growth))

    @property
    def crosses(self) -> bool:
        """Whether it is for classifiers behind a purifier."""
        return any(isinstance(attack, Rung) for attack in (*self.attacks, *self.growth))

    def labels(self) -> list[str]:
        """One distinct name an attack, escalation included: the registered one, numbered where it occurs again.

        The look at the clean images, which every run begins with, is called "clean": that attack is the second.
        """
        names = [ATTACKS.name_of(attack_of(entry)) for entry in self.entries()]
        names = [f"{c.crossing}/{n}" if isinstance(c, Rung) else n for c, n in zip(self.entries(), names, strict=True)]
        names = ["clean", *names]
        return [f"{n}#{names[: k + 1].count(n)}" if names[:k].count(n) else n for k, n in enumerate(names)][1:]

    def entries(self) -> tuple[Entry, ...]:
        """All that it can come to: attacks, growth, escalation."""
        return (*self.attacks, *self.growth, *self.escalation)


PlanMaker = Callable[[ThreatModel], Plan]
_FEW = 0.4  # of those classified right: a robust network keeps more, one without a defence less
_VERY_FEW = 0.02  # so few that a miss would show in the figure, and a long look costs next to nothing


def _autoattack(threat: ThreatModel) -> tuple[Attack, ...]:
    """The attacks of AutoAttack standard with the parameters of the reference for this norm."""
    return (APGDCE(restarts=5 if threat.norm == "l1" else 1), _targeted(threat), FABT(), Square())


def _targeted(threat: ThreatModel) -> APGDT:
    return APGDT(restarts=5 if threat.norm == "l1" else 9)


@register_plan("standard")
def standard(threat: ThreatModel) -> Plan:
    """AutoAttack standard: APGD-CE, APGD-T, FAB-T and Square with the parameters of the reference."""
    return Plan("standard", 1, _autoattack(threat))


@register_plan("individual")
def individual(threat: ThreatModel) -> Plan:
    """The attacks of `standard`, each on all correctly classified examples, each with its own figure."""
    return Plan("individual", 1, _autoattack(threat), individual=True)


@register_plan("plus")
def plus(_threat: ThreatModel) -> Plan:
    """AutoAttack plus: more restarts and the untargeted attacks as well."""
    attacks = (APGDCE(restarts=5), APGDDLR(restarts=5), FAB(restarts=5), Square(), APGDT(), FABT())
    return Plan("plus", 1, attacks)


@register_plan("rand")
def rand(_threat: ThreatModel) -> Plan:
    """AutoAttack rand, for stochastic classifiers: APGD-CE and APGD-DLR on gradients averaged over 20 draws."""
    return Plan("rand", 1, (APGDCE(), APGDDLR()), eot=20)


@register_plan("rapid")
def rapid(threat: ThreatModel) -> Plan:
    """The figure of `standard` at a fiftieth of AutoAttack's time; goes on to `standard` where gradients may lie.

    Cross-entropy first, then the margin to each of the six nearest classes, where a restart is given up as soon as it
    would not arrive at its pace, then walks along the boundary, other losses and more steps for what came near; where
    few are left, more steps for all of them, and AutoAttack's targeted attack where very few are; last, a probe
    without gradients.
    """
    attacks = (
        APGDCE(steps=20, patience=8),
        APGDT(steps=40, restarts=3, loss=TargetedMargin(), patience=8),
        Near(APGDT(steps=40, restarts=3, loss=TargetedMargin(), patience=8, skip=3), within=0.7),
        Near(FMNT(steps=30, restarts=3), within=0.35),
        Near(APGDT(restarts=5, patience=22), within=0.2),
        Near(APGDCE(restarts=2, loss=ProbabilityMargin(), patience=12), within=0.2),
        Few(APGDT(steps=60, loss=TargetedMargin(), patience=22), most=_FEW),
        Few(_targeted(threat), most=_VERY_FEW),
        Square(steps=20),
    )
    return Plan("rapid", 3, attacks, escalation=_autoattack(threat))


@register_plan("strong")
def strong(_threat: ThreatModel) -> Plan:
    """For claims of a record: several losses and starts, most of it where an example came near, then random search."""
    attacks = (
        APGDCE(steps=20),
        APGDT(steps=40, restarts=4, loss=TargetedMargin(), patience=8),
        Near(APGDT(steps=40, restarts=5, loss=TargetedMargin(), patience=8, skip=4), within=0.7),
        Near(FMNT(steps=30, restarts=4), within=0.5),
        Near(FMNT(steps=60, restarts=3), within=0.3),
        Near(APGDT(restarts=5, patience=22), within=0.25),
        Near(APGDCE(restarts=2, loss=ProbabilityMargin(), patience=20), within=0.2),
        Near(Square(steps=300), within=0.1),
        Few(APGDT(steps=60, loss=TargetedMargin(), patience=22), most=_FEW),
        Few(FMNT(steps=60, restarts=5), most=_FEW),
        Square(steps=50),
    )
    return Plan("strong", 2, attacks)


def describe(attack: Entry, classes: int) -> str:
    """The registered name and every hyper-parameter: apgd-t(steps=20, restarts=3, loss=dlr-t)."""
    if isinstance(attack, Rung):
        how = f" by {attack.crossing}" + (f", eot={attack.eot}" if attack.eot > 1 else "")
        how += ", from the nearest points" if attack.warm else ""
        return f"{describe(attack.attack, classes)}{how}" + _where_near(attack.within)
    if isinstance(attack, Near):
        return describe(attack.attack, classes) + _where_near(attack.within)
    if isinstance(attack, Few):
        return f"{describe(attack.attack, classes)} where at most {attack.most:g} of those classified right are left"
    if isinstance(attack, Limited):
        return f"{describe(attack.attack, classes)} within {attack.queries} queries"
    held = {f: getattr(attack, f.name) for f in fields(attack)}  # type: ignore[arg-type]
    values = {f.name: v for f, v in held.items() if not (f.metadata.get("silent") and v == f.default)}
    shown = {k: v.protocol(classes) if hasattr(v, "protocol") else v for k, v in values.items()}
    return f"{ATTACKS.name_of(attack)}({', '.join(f'{k}={v}' for k, v in shown.items())})"


def _where_near(within: float | None) -> str:
    return "" if within is None else f" where the margin fell below {within:g} of the clean one"


def parse_attack(text: str) -> Attack:
    """An attack as typed: "pgd" or "pgd:steps=20:restarts=5:loss=margin".

    Raises:
        SpecError: unknown attack or parameter (the nearest is named), or a value of the wrong kind.
    """
    name, *settings = text.strip().split(":")
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise SpecError(
                f"attack '{name}': expected parameter=value after ':', got '{setting}'; e.g. {name}:steps=20."
            )
        options[key.strip()] = value.strip()
    return build_attack(name, options)


def parameters(kind: type[Attack]) -> dict[str, Any]:
    """Name and default of each hyper-parameter of an attack."""
    return {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(kind)  # type: ignore[arg-type]
    }


def build_attack(name: str, options: dict[str, Any], *, beside: Sequence[str] = ()) -> Attack:
    """An attack of that name with these parameters; `beside` names what else could have been meant.

    Raises:
        SpecError: unknown attack or parameter (the nearest is named), or a value of the wrong kind.
    """
    kind = ATTACKS[name]
    known = parameters(kind)
    for key in options:
        if key not in known:
            raise unknown_name(f"parameter of {name}", key, [*known, *beside])
    attack: Attack = kind(**{key: _convert(name, key, value, known[key]) for key, value in options.items()})
    return attack


def _convert(name: str, key: str, value: Any, default: object) -> Any:
    """A value from a command line or a TOML file, in the type of the parameter's default."""
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = None
        if number is None or (isinstance(default, int) and not number.is_integer()):
            kind = "an integer" if isinstance(default, int) else "a number"
            raise SpecError(f"attack '{name}': {key} must be {kind}, got '{value}'.")
        return int(number) if isinstance(default, int) else number
    if isinstance(default, Adversarials):
        return Adversarials.parse(str(value))
    if value not in LOSSES:
        raise unknown_name(f"loss for {name}", str(value), LOSSES)
    loss: Loss = LOSSES[value]
    return loss


def parse_plan(plan: str | Plan, attacks: str | Sequence[Attack] | None, threat: ThreatModel) -> Plan:
    """The plan of that name or TOML file (`plan_files.py` says what it holds), or the attacks listed with commas."""
    if attacks is not None and not isinstance(attacks, str):
        return Plan("imported", 1, tuple(attacks))
    if attacks is not None:
        listed = [part for part in attacks.split(",") if part.strip()]
        if not listed:
            raise SpecError("attacks: expected names separated by commas, got nothing; see `robustgen list attacks`.")
        return Plan("custom", 1, tuple(parse_attack(part) for part in listed))
    if isinstance(plan, Plan):
        return plan
    if plan.endswith(".toml"):
        from robustgen.attacks.plan_files import read_plan  # it stands on this module

        return read_plan(Path(plan))
    maker: PlanMaker = PLANS[plan]
    return maker(threat)
