"""`--goal all`: a run towards each class, and one record over them.

RUN/spec.json      as of any run, with goal "all"
RUN/target-3/      the run with goal "targeted:3": a whole run folder, which `robustgen verify` takes by itself
RUN/record.json    success by label and target, and accuracies against an adversary who may choose the class

An example counts as robust where it is classified correctly and no target was reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robustgen.environment import describe_environment
from robustgen.evaluation import open_journal, run_once
from robustgen.goals import Goal, check_labels
from robustgen.prepare import Job
from robustgen.progress import Progress
from robustgen.ranks import Ranks
from robustgen.record import AttackSummary, RunRecord
from robustgen.runs import read_examples
from robustgen.spec import RunSpec
from robustgen.statistics import proportion
from robustgen.targets import merge_targets

__all__ = ["part_folder", "part_spec", "run_targets", "total", "wanted_targets"]


@dataclass
class _Towards:
    """Progress of one of the runs: stages say which class they aim at, and a note is passed on once."""

    progress: Progress
    said: set[str] = field(default_factory=set)
    target: int = 0

    def start(self, label: str, total: int) -> None:
        self.progress.start(f"{label} to {self.target}", total)

    def advance(self, done: int, info: str) -> None:
        self.progress.advance(done, info)

    def note(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.progress.note(text)


def part_folder(run: Path, target: int) -> Path:
    """Where the run towards one class lies."""
    return run / f"target-{target}"


def part_spec(spec: RunSpec, target: int) -> RunSpec:
    """The specification of the run towards one class."""
    goal = Goal("targeted", target)
    protocol = spec.protocol.removesuffix(Goal("all").protocol) + goal.protocol
    return replace(spec, goal=str(goal), protocol=protocol)


def wanted_targets(labels: Sequence[int], classes: int) -> list[int]:
    """The classes that some example does not have as its label."""
    return [target for target in range(classes) if any(label != target for label in labels)]


def run_targets(job: Job, progress: Progress, ranks: Ranks) -> RunRecord:
    """Run a job with goal "all" to its end, or go on with it class by class; a finished one is only read.

    Raises:
        SpecError, RecordError: as `run_job`.
    """
    journal = open_journal(job, ranks)
    if journal.finished:
        progress.note(f"this run was finished before; its record is read from {job.folder}.")
        return RunRecord.load(job.folder)
    try:
        told, parts = _Towards(progress), dict[int, RunRecord]()
        for target, part in _parts(job):
            told.target = target
            parts[target] = run_once(part, told, ranks)
        if ranks.first:
            seconds: dict[str, float] = {}
            for record in parts.values():
                for name, spent in record.clock.items():
                    seconds[name] = seconds.get(name, 0.0) + spent
            journal.settle(_record(job, parts, seconds), seconds)
    finally:
        journal.release()
    ranks.gather(None)
    return RunRecord.load(job.folder)


def _parts(job: Job) -> Iterator[tuple[int, Job]]:
    labels = job.dataset.labels[list(job.ids)].tolist()
    for target in wanted_targets(labels, job.classes):
        goal = Goal("targeted", target)
        yield target, replace(
            job, goal=goal, spec=part_spec(job.spec, target), folder=part_folder(job.folder, target),
            notes=(*job.notes, *check_labels(goal, labels)),
        )  # fmt: skip


def total(run: Path, parts: Mapping[int, RunRecord], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The figures of the whole, from the lines of its parts alone, and the clock."""
    rows = [{e.id: e for e in read_examples(part_folder(run, target))} for target in parts]
    first = rows[0].values()
    records = list(parts.values())
    names = list(dict.fromkeys(attack.name for record in records for attack in record.attacks))
    attacks = tuple(_attack(name, records, seconds) for name in names)
    return {
        "n": len(first),
        "clean_accuracy": proportion(sum(e.clean_prediction == e.label for e in first), len(first)),
        "robust_accuracy": proportion(sum(all(part[e.id].robust for part in rows) for e in first), len(first)),
        "attacks": attacks,
        "forwards": sum(record.forwards for record in records),
        "backwards": sum(record.backwards for record in records),
        "targets": merge_targets([record.targets for record in records if record.targets is not None]),
    }


def _attack(name: str, records: Sequence[RunRecord], seconds: Mapping[str, float]) -> AttackSummary:
    """What one attack did towards all classes."""
    mine = [attack for record in records for attack in record.attacks if attack.name == name]
    return AttackSummary(
        name=name, broken=sum(a.broken for a in mine), robust_accuracy=None, forwards=sum(a.forwards for a in mine),
        backwards=sum(a.backwards for a in mine), seconds=round(seconds.get(name, 0.0), 3),
    )  # fmt: skip


def _record(job: Job, parts: Mapping[int, RunRecord], seconds: Mapping[str, float]) -> RunRecord:
    records = list(parts.values())
    return RunRecord(
        spec=job.spec.table(),
        identity=job.spec.identity(),
        **total(job.folder, parts, seconds),
        seconds=round(sum(seconds.values()), 3),
        flags=tuple(sorted({flag for record in records for flag in record.flags})),
        health=records[0].health,
        notes=(*job.notes, "success counts pairs of an example and a target; the parts lie in target-CLASS."),
        environment={**describe_environment(), "device": str(job.device)},
        run=str(job.folder),
    )
