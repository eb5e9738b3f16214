"""One evaluation: clean pass, health checks, then each attack on what is left, then the record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from robustgen import engine
from robustgen.environment import describe_environment
from robustgen.health import FLAGS, Health, black_box_wins, inspect_classifier
from robustgen.journal import Journal
from robustgen.judge import Judge, strict_float32
from robustgen.oracle import Oracle
from robustgen.prepare import Job, Stage
from robustgen.progress import Progress
from robustgen.record import ExampleRecord, RunRecord, summarise
from robustgen.rng import stage_seed

__all__ = ["run_job"]

_HEALTH_ROWS = (16, 64)  # at least and at most; an eighth of the examples in between, so that the cost stays small
_VOTES = 21  # draws of a randomised classifier whose majority is its prediction


def run_job(job: Job, progress: Progress) -> RunRecord:
    """Run a job to its end, or go on with one that was left half-way; a finished one is only read.

    Raises:
        SpecError, RecordError: the run folder is in use for something else.
        KeyboardInterrupt: passed on, after what is finished has been written.
    """
    shape = job.dataset.shape
    journal = Journal(job.folder, job.spec, bytes_needed=len(job.ids) * (4 * shape[0] * shape[1] * shape[2] + 1024))
    if journal.finished:
        progress.note(f"this run was finished before; its record is read from {job.folder}.")
        return RunRecord.load(job.folder)
    for note in job.notes:
        progress.note(note)
    if journal.done:
        progress.note(f"{len(journal.done)} of {len(job.ids)} examples were finished before; going on.")
    try:
        # A user's classifier may draw from torch's global generator: seeded here, given back as found.
        with strict_float32(), torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
            torch.manual_seed(job.spec.seed)
            run = _Run(job, journal, progress)
            run.clean()
            for stage in job.stages:
                run.attack(stage)
            run.escalate()
            run.survivors()
    except KeyboardInterrupt:
        progress.note(f"{len(journal.done)} of {len(job.ids)} examples are kept in {job.folder}.")
        raise
    finally:
        journal.flush()
    record = _record(job, journal, run)
    journal.close(record)
    return record


class _Run:
    """The examples still standing, and what has been spent on each."""

    def __init__(self, job: Job, journal: Journal, progress: Progress) -> None:
        self.job, self.journal, self.progress = job, journal, progress
        self.health = self._inspect()
        votes = _VOTES if "randomised" in self.health.flags else 1
        self.judges = {threat: Judge(job.classifier, threat, votes=votes) for threat in job.threats}
        self.oracle = Oracle(job.search, eot=job.plan.eot)
        self.labels: dict[int, int] = {}
        self.standing = [id_ for id_ in job.ids if id_ not in journal.done]
        self.cost: dict[int, dict[str, list[int]]] = {id_: {} for id_ in self.standing}
        self.errors: dict[int, str] = {}
        self.clean_margin: dict[int, float] = {}
        self.margin: dict[int, float] = {}
        self.hits: dict[int, list[tuple[Stage, engine.Outcome]]] = {}
        self.flags: set[str] = set()
        self.ran = [stage.label for stage in job.stages]
        self.notes: list[str] = []

    def _inspect(self) -> Health:
        """Health checks on the first examples."""
        begun, ids = time.perf_counter(), self.job.ids
        rows = min(len(ids), max(_HEALTH_ROWS[0], min(_HEALTH_ROWS[1], len(ids) // 8)))
        self.progress.start("health", rows)
        x, y = self.fetch(ids[:rows])
        found = inspect_classifier(self.job.classifier, x, y, self.job.threats[0], seed=self.job.spec.seed)
        self._clock("health", begun)
        flags = tuple(sorted({*found.flags, *self.job.flags}))
        self.progress.advance(rows, f"flags: {', '.join(flags) or 'none'}")
        return replace(found, flags=flags)

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        x, y = self.job.dataset.batch(ids)
        return x.to(self.job.device), y.to(self.job.device)

    def clean(self) -> None:
        """Judge the images as they are; a misclassified one needs no attack. The rest is put in order of margin."""
        begun, wrong, todo = time.perf_counter(), 0, self.standing
        self.progress.start("clean", len(todo))
        judge = next(iter(self.judges.values()))
        margins: dict[int, float] = {}
        for at in range(0, len(todo), self.job.batch_size):
            ids = todo[at : at + self.job.batch_size]
            x, y = self.fetch(ids)
            predictions, margin = judge.look(x, y)
            for id_, label, prediction, gap in zip(ids, y.tolist(), predictions.tolist(), margin.tolist(), strict=True):
                self.labels[id_] = label
                if prediction == label:
                    margins[id_] = gap
                    continue
                wrong += 1
                error = "the model's output on the clean image is not finite" if prediction < 0 else None
                self.journal.add(self._example(id_, prediction, None, error), None)
            self.progress.advance(at + len(ids), f"{wrong} misclassified")
        self.clean_margin, self.margin = margins, dict(margins)
        self.standing = sorted(margins, key=lambda id_: (margins[id_], id_))
        self.journal.flush()
        self._clock("clean", begun)

    def attack(self, stage: Stage) -> None:
        """Run one attack on what is standing; the broken are filed at once."""
        begun, todo = time.perf_counter(), [id_ for id_ in self.standing if self._is_near(id_, stage)]
        if not todo:
            return
        self.progress.start(stage.label, len(todo))
        broken: set[int] = set()
        settled = 0

        def finish(outcome: engine.Outcome) -> None:
            nonlocal settled
            settled += 1
            self.cost[outcome.id][stage.label] = [outcome.forwards, outcome.backwards]
            self.margin[outcome.id] = min(self.margin[outcome.id], outcome.margin)
            if outcome.error is not None:
                self.errors[outcome.id] = f"{stage.label}: {outcome.error}"
            if outcome.broken:
                broken.add(outcome.id)
                self._hit(stage, outcome)
            self.progress.advance(settled, f"{len(broken)} broken")

        engine.run(
            stage.attack, self.oracle, self.judges[stage.threat], self.fetch, todo, stage.threat,
            seed=stage_seed(self.job.spec.seed, stage.label), batch_size=self.job.batch_size, finish=finish,
        )  # fmt: skip
        if not self.job.plan.individual:
            self.standing = [id_ for id_ in self.standing if id_ not in broken]
        self._clock(stage.label, begun)

    def _is_near(self, id_: int, stage: Stage) -> bool:
        return stage.within is None or self.margin[id_] < stage.within * self.clean_margin[id_]

    def escalate(self) -> None:
        """Where a flag says that gradients may lie, run what the plan keeps for that case."""
        self.flags = set(self.health.flags)
        if black_box_wins(list(self.journal.done.values()), self.standing):
            self.flags.add("black-box-wins")
        reasons = sorted(name for name in self.flags if FLAGS[name].escalates)
        if not reasons or not self.job.escalation:
            return
        self.ran += [stage.label for stage in self.job.escalation]
        self.notes.append(f"flags raised ({', '.join(reasons)}): the plan went on to its thorough attacks.")
        self.progress.note(self.notes[-1])
        for stage in self.job.escalation:
            self.attack(stage)

    def survivors(self) -> None:
        """File what is left: robust, as far as this plan can tell, or, where every attack saw all, the first break."""
        for id_ in self.standing:
            hits = self.hits.get(id_, [])
            everywhere = [stage.label for stage, _ in hits] if self.job.plan.individual else None
            self._file(id_, hits[0] if hits else None, everywhere)

    def _hit(self, stage: Stage, outcome: engine.Outcome) -> None:
        if self.job.plan.individual:
            self.hits.setdefault(outcome.id, []).append((stage, outcome))
        else:
            self._file(outcome.id, (stage, outcome), None)

    def _file(self, id_: int, hit: tuple[Stage, engine.Outcome] | None, everywhere: list[str] | None) -> None:
        record = self._example(id_, self.labels[id_], hit, self.errors.get(id_))
        x_adv = None if hit is None else hit[1].x_adv
        self.journal.add(replace(record, broken_by_all=everywhere), x_adv)

    def _example(
        self, id_: int, clean_prediction: int, hit: tuple[Stage, engine.Outcome] | None, error: str | None
    ) -> ExampleRecord:
        label = self.labels[id_]
        base = ExampleRecord(
            id=id_, label=label, clean_prediction=clean_prediction, robust=hit is None and clean_prediction == label,
            broken_by=None if clean_prediction == label else "clean", cost=self.cost[id_], error=error,
        )  # fmt: skip
        if hit is None:
            return base
        stage, o = hit
        return replace(
            base, broken_by=stage.label, threat=str(stage.threat), restart=o.restart, round=o.round,
            distance=o.distance, prediction=o.prediction,
        )  # fmt: skip

    def _clock(self, label: str, begun: float) -> None:
        held = self.journal.seconds
        held[label] = held.get(label, 0.0) + time.perf_counter() - begun


def _record(job: Job, journal: Journal, run: _Run) -> RunRecord:
    examples = [journal.done[id_] for id_ in job.ids]
    clean, robust, attacks = summarise(examples, run.ran, journal.seconds)
    flags = run.flags | ({"not-finite"} if any(e.error for e in examples) else set())
    return RunRecord(
        spec=asdict(job.spec),
        identity=job.spec.identity(),
        n=len(examples),
        clean_accuracy=clean,
        robust_accuracy=robust,
        attacks=attacks,
        forwards=len(examples) + sum(a.forwards for a in attacks),
        backwards=sum(a.backwards for a in attacks),
        seconds=round(sum(journal.seconds.values()), 3),
        flags=tuple(sorted(flags)),
        health=run.health.measured,
        notes=(*job.notes, *run.notes),
        environment={**describe_environment(), "device": str(job.device), "torch_threads": torch.get_num_threads()},
        run=str(job.folder),
    )
