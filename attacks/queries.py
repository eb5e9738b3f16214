"""A budget in queries: the plan of attacks that see answers only, and any such plan held to so many images."""

from __future__ import annotations

from dataclasses import replace

from robustgen.attacks.bandits import Bandits
from robustgen.attacks.base import AnswersOnly, Attack, serves
from robustgen.attacks.boundary import Boundary
from robustgen.attacks.decision import DecisionBased
from robustgen.attacks.estimates import Estimated
from robustgen.attacks.hopskipjump import HopSkipJump
from robustgen.attacks.nes import NES
from robustgen.attacks.patch_rs import PatchRS
from robustgen.attacks.plans import Few, Near, Plan, Rung
from robustgen.attacks.simba import SimBA, SimBADCT
from robustgen.attacks.spsa import SPSA
from robustgen.attacks.square import Square
from robustgen.attacks.surfree import SurFree
from robustgen.errors import SpecError
from robustgen.fields import WHOLE, check_value
from robustgen.registry import ATTACKS, register_plan
from robustgen.threat import ThreatModel

__all__ = ["counts_queries", "limit", "needs_float32", "queries"]


@register_plan("queries")
def queries(threat: ThreatModel) -> Plan:
    """The attacks that see scores or labels only, 1,000 queries for each example, each attack on all examples.

    Without an eps those that look for the nearest image, which see labels.
    """
    by_scores: tuple[Attack, ...] = (Square(steps=999), Bandits(), NES(), SPSA(), SimBA(), SimBADCT(), PatchRS())
    by_labels: tuple[HopSkipJump | Boundary | SurFree, ...] = (HopSkipJump(), Boundary(), SurFree())
    kept = tuple(attack for attack in by_labels if threat.norm in attack.nearest_in)
    scored = tuple(attack for attack in by_scores if threat.norm in serves(attack))
    return Plan("queries", 2, (*scored, *kept) if threat.bounded else kept, individual=True)


def limit(plan: Plan, budget: int) -> Plan:
    """The plan with so many queries for each example and attack, each attack on all examples.

    Raises:
        SpecError: not a whole number from 1 on, a plan that does more than list attacks, or an attack that asks for
            more than answers.
    """
    check_value("--queries", budget, WHOLE)
    if plan.escalation or plan.growth or plan.eot > 1 or any(isinstance(a, Near | Few | Rung) for a in plan.attacks):
        raise SpecError(
            f"--queries holds attacks that see answers only to a budget, and plan {plan.name} does more; type --plan "
            "queries or --attacks square,hopskipjump."
        )
    return replace(plan, attacks=tuple(_limited(attack, budget) for attack in plan.unconditional()), individual=True)


def _limited(attack: Attack, budget: int) -> Attack:
    if not isinstance(attack, AnswersOnly):
        raise SpecError(
            f"attack '{ATTACKS.name_of(attack)}' asks for more than answers or has no budget, which --queries needs; "
            "type --attacks square,hopskipjump or --plan queries."
        )
    return attack.limited(budget)


def counts_queries(plan: Plan, threat: ThreatModel) -> bool:
    """Whether a run says how many queries a success took: every attack sees answers only and ends with a success."""
    return threat.bounded and all(isinstance(entry, AnswersOnly) for entry in (*plan.attacks, *plan.growth))


def needs_float32(plan: Plan) -> bool:
    """Whether an attack lives on differences that bfloat16 does not resolve: of two scores, or of two labels."""
    return any(isinstance(attack, Estimated | SimBA | DecisionBased) for attack in plan.unconditional())
