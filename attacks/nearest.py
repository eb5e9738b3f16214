"""Minimum-norm attacks as a goal of their own: which request they answer, and the plan that runs all of them."""

from __future__ import annotations

from robustgen.attacks.base import Attack, MinimumNorm, serves
from robustgen.attacks.ddn import DDN
from robustgen.attacks.fab import FABT
from robustgen.attacks.fmn import FMN, FMNT
from robustgen.attacks.plans import Entry, Few, Near, Plan, Rung, attack_of
from robustgen.attacks.sigma_zero import SigmaZero
from robustgen.errors import SpecError, unknown_name
from robustgen.registry import ATTACKS, register_plan
from robustgen.threat import BALLS, ThreatModel

__all__ = ["REPORTS", "check_goal", "goal_threats", "nearest"]

REPORTS = ("accuracy", "distance")
_EXAMPLES = {"linf": "linf:8/255", "l2": "l2:0.5", "l1": "l1:12", "l0": "l0", "patch": "patch:6x6"}


@register_plan("nearest")
def nearest(threat: ThreatModel) -> Plan:
    """The minimum-norm attacks of this norm, for `--report distance`: each on all examples, the nearest counts."""
    attacks: tuple[Attack, ...] = (FMN(steps=200), FMNT(steps=60), DDN(steps=200), FABT(steps=30), SigmaZero())
    kept = tuple(a for a in attacks if isinstance(a, MinimumNorm) and threat.norm in a.nearest_in)
    return Plan("nearest", 1, kept, individual=True)


def goal_threats(text: str | ThreatModel, report: str) -> tuple[ThreatModel, ...]:
    """The threat models of a request that asks for this report: with an eps for accuracy, one without for distance.

    Raises:
        SpecError: not such threat models, or no such report.
    """
    if report not in REPORTS:
        raise unknown_name("report", report, REPORTS)
    threats = ThreatModel.parse_all(text, bare=report == "distance")
    if report == "accuracy":
        if not all(threat.bounded for threat in threats):
            raise SpecError(f"threat {text} has no eps; give it one, such as linf:8/255, or type --report distance.")
    elif len(threats) > 1 or threats[0].bounded:
        raise SpecError(
            f"--report distance looks for the nearest adversarial image in one norm without an eps, got '{text}'; type "
            f"--threat {threats[0].norm if threats[0].norm in BALLS else BALLS[1]}."
        )
    return threats


def check_goal(plan: Plan, threat: ThreatModel, *, norm_known: bool = True) -> None:
    """Whether every attack of the plan can do what the threat model asks.

    Args:
        plan: what is run.
        threat: under which.
        norm_known: whether its norm is the one that will be attacked; else only whether it has an eps counts.

    Raises:
        SpecError: an attack that needs an eps where there is none, one that takes none where there is one, one that
            has not this norm; or no attack at all.
    """
    if not plan.attacks and norm_known:
        advice = f"--plan {'patches' if threat.norm == 'patch' else 'nearest'}"
        raise SpecError(f"plan {plan.name} has no attack for {threat}; type {advice} or another norm.")
    for entry in (*plan.attacks, *plan.growth):
        _check_attack(attack_of(entry), entry, threat, norm_known)


def _check_attack(attack: Attack, entry: Entry, threat: ThreatModel, norm_known: bool) -> None:
    name = ATTACKS.name_of(attack)
    if norm_known and threat.bounded and threat.norm not in serves(attack):
        advice = "--plan patches" if threat.norm == "patch" else f"--threat {_EXAMPLES[serves(attack)[0]]}"
        raise SpecError(f"attack '{name}' works in {', '.join(serves(attack))}, not in {threat}; type {advice}.")
    if threat.bounded:
        if isinstance(attack, MinimumNorm) and not attack.takes_eps:
            raise SpecError(
                f"attack '{name}' looks for the nearest adversarial image and takes no eps, got {threat}; type "
                f"--threat {threat.norm if threat.norm in attack.nearest_in else attack.nearest_in[0]} "
                "--report distance."
            )
        if isinstance(attack, MinimumNorm) and norm_known and threat.norm not in attack.nearest_in:
            raise SpecError(
                f"attack '{name}' works in {', '.join(attack.nearest_in)}, not in {threat}; type "
                f"{'--attacks hopskipjump' if threat.norm == 'linf' else '--attacks square'}, or another norm."
            )
        return
    if not isinstance(attack, MinimumNorm) or isinstance(entry, Near | Few | Rung):
        raise SpecError(
            f"attack '{name}' needs an eps, and threat {threat} has none; type --plan nearest or --attacks fmn, or "
            "drop --report distance and give the threat an eps such as l2:0.5."
        )
    if norm_known and threat.norm not in attack.nearest_in:
        raise SpecError(
            f"attack '{name}' finds the nearest image in {', '.join(attack.nearest_in)}, not in {threat}; "
            "type --attacks fmn, which knows every norm."
        )
