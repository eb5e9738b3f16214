"""robustgen: robustness claims that anybody can check.

Nothing heavy is imported here: torch arrives with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# The folders attacks/, purify/, benchmarks/ and leaderboard/ stand at the root of the repository and are
# installed as robustgen.attacks and so on (pyproject.toml, package-dir). In a bare checkout they are found here.
_here = Path(__file__).resolve().parent
if not (_here / "attacks").is_dir() and (_here.parent / "pyproject.toml").is_file():
    __path__.append(str(_here.parent))

_LAZY = {
    "Classifier": "robustgen.classifier",
    "ExampleRng": "robustgen.rng",
    "RobustgenError": "robustgen.errors",
    "RunOptions": "robustgen.spec",
    "RunRecord": "robustgen.record",
    "SpecError": "robustgen.errors",
    "ThreatModel": "robustgen.threat",
    "attack": "robustgen.api",
    "evaluate": "robustgen.api",
    "load_classifier": "robustgen.classifiers",
    "load_data": "robustgen.data",
}

__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `robustgen --help` needs no torch."""
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'robustgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
