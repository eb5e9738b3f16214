"""How a speed is measured here: both sides in turn in one process, ratio pair by pair, result stored as JSON.

Every script in this folder is run as `python -m robustgen.benchmarks.NAME` and writes results/NAME.json, from which
README and docs are rendered (`python -m robustgen.benchmarks.render`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robustgen.environment import describe_environment
from robustgen.journal import write_json

__all__ = ["Comparison", "compare", "store"]

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of both sides, pair by pair, and the ratio theirs / ours."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """One a pair; above 1 means that ours is faster."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]

    def summary(self) -> dict[str, Any]:
        """Median, minimum and maximum of the ratio beside the raw seconds."""
        ratios = self.ratios
        spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        return {**asdict(self), "ratio": spread}


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int = 5) -> Comparison:
    """Run both sides once to warm up, then in turn."""
    ours()
    theirs()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for side, work in zip(seconds, (ours, theirs), strict=True):
            start = time.perf_counter()
            work()
            side.append(time.perf_counter() - start)
    return Comparison(*seconds)


def store(name: str, result: dict[str, Any]) -> Path:
    """Write results/NAME.json with the date, the environment and the command that made it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    date = datetime.now(UTC).date().isoformat()
    command = f"python -m robustgen.benchmarks.{name}"
    write_json(path, {"name": name, "command": command, "date": date, "environment": describe_environment(), **result})
    return path
