"""How a speed is measured here: both sides in turn in one process, ratio pair by pair, result stored as JSON.

Every script in this folder is run as `python -m robustgen.benchmarks.NAME` and writes results/NAME.json, from which
README and docs are rendered (`python -m robustgen.benchmarks.render`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustgen.classifier import Classifier
from robustgen.durable import write_json
from robustgen.environment import describe_environment
from robustgen.prepare import DEFAULT_BATCH
from robustgen.threat import ThreatModel

__all__ = [
    "DOCS", "RESULTS", "Comparison", "Pieces", "compare", "in_fresh_process", "in_turn", "reference_verdicts", "store",
]  # fmt: skip

T = TypeVar("T")

RESULTS = Path(__file__).resolve().parent / "results"
DOCS = RESULTS.parent.parent / "docs"


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
    return Comparison(*in_turn((ours, theirs), pairs))


def in_turn(works: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each, one a round: in every round all of them one after the other."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for side, work in zip(seconds, works, strict=True):
            start = time.perf_counter()
            work()
            side.append(time.perf_counter() - start)
    return seconds


def in_fresh_process(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns when called in a Python process of its own, which begins with nothing imported."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


class Pieces:
    """A long measurement in pieces, a JSON file each, that can be stopped between them; the same command goes on.

    Args:
        folder: of the files, made where it is missing; also for what a piece keeps to go on within itself.
        seconds: no piece begins after so many; None for no limit.
    """

    def __init__(self, folder: Path, seconds: float | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.until = folder, None if seconds is None else time.monotonic() + seconds

    def __call__(self, name: str, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """What the piece of this name found, now or in an earlier process.

        Raises:
            SystemExit: time is up, and this piece is not done.
        """
        path = self.folder / f"{name}.json"
        if path.is_file():
            held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return held
        if self.until is not None and time.monotonic() >= self.until:
            raise SystemExit(f"time is up before {name}; the same command goes on in {self.folder}.")
        found = work(*arguments)
        write_json(path, found)
        print(name, found, flush=True)
        return found


def reference_verdicts(
    classifier: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int = 0
) -> tuple[list[bool], float]:
    """Which images AutoAttack standard leaves robust, judged again in float32; and its seconds."""
    from pyautoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    begun = time.perf_counter()
    reference = AutoAttack(classifier, norm=norm, eps=threat.eps, version="standard", device="cpu", seed=seed)
    x_adv, _ = reference.run_standard_evaluation(x, y, batch_size=DEFAULT_BATCH)
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        robust = (classifier(x).argmax(1) == y) & (classifier(x_adv).argmax(1) == y)
    return robust.tolist(), seconds


def store(name: str, result: dict[str, Any], *, module: str | None = None) -> Path:
    """Write results/NAME.json with the date, the environment and the command that made it.

    `module` is what was run, below robustgen.benchmarks, where it is not called NAME.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    date = datetime.now(UTC).date().isoformat()
    command = f"python -m robustgen.benchmarks.{module or name}"
    write_json(path, {"name": name, "command": command, "date": date, "environment": describe_environment(), **result})
    return path
