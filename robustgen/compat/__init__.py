"""What existing scripts import: `AutoAttack` and `benchmark` with the arguments of AutoAttack and RobustBench.

    from robustgen.compat import AutoAttack, benchmark

Behind them stand the plans `standard`, `plus` and `rand` and the judge; neither package is needed. What cannot be
honoured is refused before any work.
"""

from __future__ import annotations

from robustgen.compat.autoattack import AutoAttack
from robustgen.compat.benchmark import benchmark

__all__ = ["AutoAttack", "benchmark"]
