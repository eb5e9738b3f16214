"""What existing scripts import: `AutoAttack`, `benchmark`, `load_model`, `load_cifar10`, with the arguments they know.

    from robustgen.compat import AutoAttack, benchmark, load_cifar10, load_model

Behind the first two stand the plans `standard`, `plus` and `rand` and the judge; neither package is needed but for
`load_model`, whose networks are RobustBench's. What cannot be honoured is refused before any work.
"""

from __future__ import annotations

from robustgen.compat.autoattack import AutoAttack
from robustgen.compat.benchmark import benchmark
from robustgen.compat.zoo import load_cifar10, load_model

__all__ = ["AutoAttack", "benchmark", "load_cifar10", "load_model"]
