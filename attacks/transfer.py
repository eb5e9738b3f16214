"""Attacks on surrogates: the plan, and what may be run where the target itself is never asked."""

from __future__ import annotations

from robustgen.attacks.di_fgsm import DIFGSM
from robustgen.attacks.mi_fgsm import MIFGSM
from robustgen.attacks.ni_fgsm import NIFGSM
from robustgen.attacks.plans import Limited, Near, Plan, Rung
from robustgen.attacks.si_fgsm import SIFGSM
from robustgen.attacks.ti_fgsm import TIFGSM
from robustgen.errors import SpecError
from robustgen.registry import register_plan
from robustgen.threat import ThreatModel

__all__ = ["check_surrogate_plan", "transfer"]


@register_plan("transfer")
def transfer(_threat: ThreatModel) -> Plan:
    """Momentum attacks on the surrogates that --surrogates names, each on all examples; the target only judges."""
    return Plan("transfer", 1, (MIFGSM(), NIFGSM(), DIFGSM(), TIFGSM(), SIFGSM()), individual=True)


def check_surrogate_plan(plan: Plan, threat: ThreatModel, *, surrogates: bool) -> Plan:
    """The plan, if it can be run on surrogates where there are some, and on the target itself where there are none.

    Raises:
        SpecError: --plan transfer without surrogates, or surrogates with a plan that looks at margins, crosses a
            purifier, or has no eps.
    """
    if not surrogates:
        if plan.name == "transfer":
            raise SpecError("--plan transfer attacks other classifiers than the target; add --surrogates NAME,NAME.")
        return plan
    if not threat.bounded:
        raise SpecError("--surrogates needs an eps; drop --report distance and type --threat linf:0.1.")
    asks = any(isinstance(entry, Near | Rung | Limited) for entry in plan.attacks)
    if asks or plan.escalation or plan.growth or plan.eot > 1:
        raise SpecError(
            f"--surrogates runs attacks that never hear of the target, and plan {plan.name} goes by its answers; type "
            "--plan transfer or --attacks mi-fgsm,di-fgsm."
        )
    return plan
