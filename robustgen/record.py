"""The summary of a run, in plain JSON. Null means not measured, never 0."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from robustgen.distances import DistanceSummary, NearestSummary
from robustgen.errors import RecordError
from robustgen.example import ExampleRecord, counted
from robustgen.queries import QueriesSummary
from robustgen.statistics import Estimate, proportion
from robustgen.targets import TargetSummary

__all__ = ["AttackSummary", "RunRecord", "StochasticScore", "summarise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSummary:
    """Totals of one attack over the whole run; seconds of the machine that ran it.

    `broken` counts the examples that it was the first to break; `robust_accuracy` is what it leaves when run alone,
    null unless every attack saw every example.
    """

    name: str
    broken: int
    robust_accuracy: Estimate | None
    forwards: int
    backwards: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StochasticScore:
    """Robust accuracy of a randomised classifier in several ways, all on the images that the run ended with.

    An image that is right in k of the draws counts with the probability that follows from k, which is unbiased.

    Attributes:
        draws: fresh passes over each image.
        votes: behind a majority.
        resubmissions: how often an adversary may try in `worst_of_n`.
        single_shot: right in one pass.
        majority: right by the majority of the votes.
        worst_of_n: right in each of the resubmissions.
        clean_single_shot, clean_majority, clean_worst_of_n: the same without any attack.
        protocols: what published protocols would have said of the same images, by name.
    """

    draws: int
    votes: int
    resubmissions: int
    single_shot: Estimate
    majority: Estimate
    worst_of_n: Estimate
    clean_single_shot: Estimate
    clean_majority: Estimate
    clean_worst_of_n: Estimate
    protocols: dict[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The claim and what stands behind it: contents of record.json.

    Attributes:
        spec: every field of the run's `RunSpec`.
        identity: sha256 of the spec.
        n: examples.
        clean_accuracy, robust_accuracy: with 95 % Wilson intervals, fractions of 1.
        attacks: in the order in which they ran.
        forwards, backwards: totals of the attacks and the clean pass; health checks and the judge are not in them.
        seconds: of everything, health checks included.
        flags: health flags raised, by name (`robustgen show flags`).
        health: what the health checks measured, by flag.
        stochastic: how a randomised classifier fares on the final images with fresh noise, else null.
        distances, nearest: how far away the adversarial images of each attack are, and the best of all with its curve
            of robust accuracy against eps, where the run has no eps; else null. `robust_accuracy` then is the share
            that no attack broke at any distance.
        targets: how often which class was reached, where the run has a goal; else left out of record.json.
        queries: how many queries each attack took, where all of them see answers only and the run has an eps; or null.
        notes: what a reader should know, in sentences.
        environment: versions, hardware, git commit, threads.
        status: "success".
        run: the folder.
    """

    spec: dict[str, Any]
    identity: str
    n: int
    clean_accuracy: Estimate
    robust_accuracy: Estimate
    attacks: tuple[AttackSummary, ...]
    forwards: int
    backwards: int
    seconds: float
    flags: tuple[str, ...]
    health: dict[str, float]
    notes: tuple[str, ...]
    environment: dict[str, Any]
    stochastic: StochasticScore | None = None
    distances: dict[str, DistanceSummary] | None = None
    nearest: NearestSummary | None = None
    targets: TargetSummary | None = None
    queries: QueriesSummary | None = None
    status: str = "success"
    schema: int = 1
    run: str = ""

    @property
    def clock(self) -> dict[str, float]:
        """Stage -> seconds, from the folder."""
        held: dict[str, float] = json.loads((Path(self.run) / "seconds.json").read_text(encoding="utf-8"))
        return held

    def to_json(self) -> dict[str, Any]:
        """The record with the words that the command line uses at the top level."""
        head = {
            key: self.spec[key] for key in ("classifier", "data", "threat", "plan", "protocol", "seed", "precision")
        }
        table = {key: value for key, value in asdict(self).items() if key != "targets" or value is not None}
        return {**head, **table}

    def stored(self) -> dict[str, Any]:
        """What record.json holds: all but clock and folder, so that equal runs leave equal files."""
        table = {key: value for key, value in self.to_json().items() if key not in ("seconds", "run")}
        return {**table, "attacks": [{k: v for k, v in row.items() if k != "seconds"} for row in table["attacks"]]}

    @classmethod
    def load(cls, run: Path) -> RunRecord:
        """Read RUN/record.json, and the clock from RUN/seconds.json.

        Raises:
            RecordError: not a finished run, not JSON, or of another schema.
        """
        path = run / "record.json"
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            unfinished = (run / "spec.json").is_file()
            what = (
                "is an unfinished run; the same eval command goes on with it" if unfinished else "is not a run folder"
            )
            raise RecordError(f"{run} {what} (no record.json).") from None
        except ValueError as error:
            raise RecordError(f"{path} is not valid JSON: {error}.") from None
        if not isinstance(table, dict) or table.get("schema") != 1:
            raise RecordError(
                f"{path} has schema {table.get('schema') if isinstance(table, dict) else None}, expected 1."
            )
        names = {f.name for f in fields(cls)}
        kept = {key: value for key, value in table.items() if key in names}
        try:
            clock = json.loads((run / "seconds.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(f"{run / 'seconds.json'} cannot be read: {error}.") from None
        try:
            kept["seconds"] = round(sum(clock.values()), 3)
            for row in kept["attacks"]:
                row["seconds"] = round(clock.get(row["name"], 0.0), 3)
            for key in ("clean_accuracy", "robust_accuracy"):
                kept[key] = Estimate(**kept[key])
            kept["attacks"] = tuple(_attack_summary(row) for row in kept["attacks"])
            if kept["stochastic"] is not None:
                score: dict[str, Any] = kept["stochastic"]
                told = {name: Estimate(**v) for name, v in score.pop("protocols").items()}
                score = {k: Estimate(**v) if isinstance(v, dict) else v for k, v in score.items()}
                score["protocols"] = told
                kept["stochastic"] = StochasticScore(**score)
            if kept.get("nearest") is not None:
                kept["nearest"] = NearestSummary.from_json(kept["nearest"])
                kept["distances"] = {name: DistanceSummary(**row) for name, row in kept["distances"].items()}
            if kept.get("targets") is not None:
                kept["targets"] = TargetSummary.from_json(kept["targets"])
            if kept.get("queries") is not None:
                kept["queries"] = QueriesSummary.from_json(kept["queries"])
            kept.update(flags=tuple(kept["flags"]), notes=tuple(kept["notes"]), run=str(run))
            return cls(**kept)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise RecordError(f"{path} lacks a field or has one of the wrong kind: {error}.") from None


def _attack_summary(row: dict[str, Any]) -> AttackSummary:
    alone = row["robust_accuracy"]
    return AttackSummary(**{**row, "robust_accuracy": None if alone is None else Estimate(**alone)})


def summarise(
    examples: Sequence[ExampleRecord], labels: Iterable[str], seconds: dict[str, float]
) -> tuple[Estimate, Estimate, tuple[AttackSummary, ...]]:
    """Clean accuracy, robust accuracy and the attacks' totals, from nothing but the examples (and the clock).

    Examples that a goal skips are left out.
    """
    examples = counted(examples)
    n = len(examples)
    clean = proportion(sum(e.clean_prediction == e.label for e in examples), n)
    robust = proportion(sum(e.robust for e in examples), n)
    alone = any(e.broken_by_all is not None for e in examples)
    right = [e for e in examples if e.clean_prediction == e.label]
    attacks = tuple(
        AttackSummary(
            name=label,
            broken=sum(e.broken_by == label for e in examples),
            robust_accuracy=proportion(sum(label not in (e.broken_by_all or []) for e in right), n) if alone else None,
            forwards=sum(e.cost.get(label, [0, 0])[0] for e in examples),
            backwards=sum(e.cost.get(label, [0, 0])[1] for e in examples),
            seconds=round(seconds.get(label, 0.0), 3),
        )
        for label in labels
    )
    return clean, robust, attacks
