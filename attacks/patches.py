"""The plan for patch threat models."""

from __future__ import annotations

from robustgen.attacks.patch_pgd import PatchPGD
from robustgen.attacks.patch_rs import PatchRS
from robustgen.attacks.plans import Plan
from robustgen.registry import register_plan
from robustgen.threat import ThreatModel

__all__ = ["patches"]


@register_plan("patches")
def patches(_threat: ThreatModel) -> Plan:
    """For `--threat patch:6x6`, where it is the default: Patch-PGD, then random search over what that left standing."""
    return Plan("patches", 1, (PatchPGD(), PatchRS()))
