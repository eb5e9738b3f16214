"""The plan for classifiers behind a purifier: a ladder from attacks that know nothing of it to attacks that know all.

Each rung is reported, so that a reader sees how much of a claim rests on an attacker who was kept in the dark.
"""

from __future__ import annotations

from robustgen.attacks.apgd import APGDCE, APGDT
from robustgen.attacks.losses import Margin, TargetedMargin
from robustgen.attacks.patch_pgd import PatchPGD
from robustgen.attacks.patch_rs import PatchRS
from robustgen.attacks.pgd import PGD
from robustgen.attacks.plans import Plan, Rung
from robustgen.attacks.square import Square
from robustgen.registry import register_plan
from robustgen.threat import ThreatModel

__all__ = ["adaptive"]


@register_plan("adaptive")
def adaptive(threat: ThreatModel) -> Plan:
    """For purifiers: transfer, BPDA, surrogate, then exact gradients with EOT, raised until nothing more breaks.

    The weak rungs come first, because what they leave standing is what weak evaluations would have reported. Rungs by
    the full gradient begin where the ones before came nearest. Then steps and draws are doubled for the examples that
    came near, until a rung breaks hardly anything. Under a patch the rungs are transfer, BPDA, exact gradients and
    random search.
    """
    if threat.norm == "patch":
        last = PatchPGD(keep=1, steps=40)  # of what is transferred the last point counts: that of the best window
        exact = tuple(Rung(PatchPGD(), crossing, eot=5) for crossing in ("bpda", "full"))
        return Plan("adaptive", 1, (Rung(last, "transfer"), *exact, Rung(PatchRS(), "none")))
    return Plan(
        "adaptive",
        2,
        (
            Rung(APGDCE(steps=40), "transfer"),
            Rung(PGD(steps=20), "bpda", eot=5),
            Rung(PGD(steps=20), "surrogate", eot=5),
            Rung(PGD(steps=20), "full", eot=5),
            Rung(APGDCE(steps=20, loss=Margin()), "full", eot=5, warm=True),
            Rung(APGDT(steps=20, restarts=2, loss=TargetedMargin()), "full", eot=5, warm=True),
            Rung(Square(steps=100), "none"),
        ),
        growth=(
            Rung(APGDCE(steps=40), "full", eot=10, warm=True, within=0.5),
            Rung(APGDCE(steps=80), "full", eot=20, warm=True, within=0.35),
            Rung(APGDCE(steps=160), "full", eot=40, warm=True, within=0.2),
        ),
    )
