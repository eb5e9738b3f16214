"""The attacks of AutoAttack by its own names, and the hyper-parameters that scripts set on them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from robustgen.attacks.apgd import APGDCE, APGDDLR, APGDT
from robustgen.attacks.base import Attack
from robustgen.attacks.fab import FAB, FABT
from robustgen.attacks.plans import Plan
from robustgen.attacks.square import Square
from robustgen.errors import SpecError, unknown_name
from robustgen.registry import PLANS
from robustgen.threat import ThreatModel

__all__ = ["ATTACKS", "VERSIONS", "Settings", "plan_of"]

ATTACKS = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "custom": (),
}


class _Group:
    """Attributes that may be set; any other name is refused."""

    def __setattr__(self, name: str, value: Any) -> None:
        known = [entry.name for entry in fields(self)]  # type: ignore[arg-type]  # every group is a dataclass
        if name not in known:
            raise unknown_name(f"setting of {type(self).__name__}", name, known)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SpecError(f"{type(self).__name__}.{name} must be a whole number >= 1, got {value!r}.")
        object.__setattr__(self, name, value)


@dataclass
class APGDSettings(_Group):
    """Of APGD-CE and APGD-DLR; `eot_iter` draws stand behind every query of the whole run."""

    n_restarts: int = 5
    n_iter: int = 100
    eot_iter: int = 1


@dataclass
class APGDTargetedSettings(_Group):
    """Of APGD-T: one restart for each target class."""

    n_target_classes: int = 9
    n_iter: int = 100


@dataclass
class FABSettings(_Group):
    """Of FAB; FAB-T has one restart for each target class, as in the reference."""

    n_restarts: int = 5
    n_target_classes: int = 9
    n_iter: int = 100


@dataclass
class SquareSettings(_Group):
    """Of Square."""

    n_queries: int = 5000
    n_restarts: int = 1


class Settings:
    """What a new `AutoAttack` of some version holds: the reference's own numbers.

    Args:
        version: a key of `VERSIONS`.
        norm: "linf", "l2" or "l1"; standard takes more restarts and fewer classes in L1.
    """

    def __init__(self, version: str, norm: str) -> None:
        sparse = version == "standard" and norm == "l1"
        once = (version == "standard" and not sparse) or version == "rand"
        self.apgd = APGDSettings(n_restarts=1 if once else 5, eot_iter=20 if version == "rand" else 1)
        self.apgd_targeted = APGDTargetedSettings(n_target_classes=5 if sparse else 9)
        self.fab = FABSettings(n_restarts=1 if version == "standard" else 5)
        self.square = SquareSettings()

    def attack(self, name: str) -> Attack:
        """The attack of that name with what is set now.

        Raises:
            SpecError: no attack of AutoAttack.
        """
        apgd, targeted, fab, square = self.apgd, self.apgd_targeted, self.fab, self.square
        made: dict[str, Attack] = {
            "apgd-ce": APGDCE(steps=apgd.n_iter, restarts=apgd.n_restarts),
            "apgd-dlr": APGDDLR(steps=apgd.n_iter, restarts=apgd.n_restarts),
            "apgd-t": APGDT(steps=targeted.n_iter, restarts=targeted.n_target_classes),
            "fab": FAB(steps=fab.n_iter, restarts=fab.n_restarts),
            "fab-t": FABT(steps=fab.n_iter, restarts=fab.n_target_classes),
            "square": Square(steps=square.n_queries, restarts=square.n_restarts),
        }
        if name not in made:
            raise unknown_name("attack of AutoAttack", str(name), ATTACKS)
        return made[name]


def plan_of(settings: Settings, names: list[str], version: str, threat: ThreatModel) -> Plan:
    """The plan of that version where it is just what is set, else one called "custom" of these attacks in this order.

    Raises:
        SpecError: no attack, or an unknown one.
    """
    if not names:
        raise SpecError("attacks_to_run is empty; name some, such as ['apgd-ce', 'square'], or drop version='custom'.")
    attacks, eot = tuple(settings.attack(name) for name in names), settings.apgd.eot_iter
    if version in PLANS:
        known: Plan = PLANS[version](threat)
        if known.attacks == attacks and known.eot == eot:
            return known
    return Plan("custom", 1, attacks, eot=eot)
