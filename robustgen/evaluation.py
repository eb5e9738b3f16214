"""One evaluation: clean pass, then each attack on what is left, then the record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from robustgen import engine
from robustgen.attacks.base import Attack
from robustgen.environment import describe_environment
from robustgen.journal import Journal
from robustgen.judge import Judge, strict_float32
from robustgen.oracle import Oracle
from robustgen.prepare import Job
from robustgen.progress import Progress
from robustgen.record import ExampleRecord, RunRecord, summarise

__all__ = ["run_job"]


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
        with strict_float32():
            run = _Run(job, journal, progress)
            run.clean()
            for label, attack in zip(job.plan.labels(), job.plan.attacks, strict=True):
                run.attack(label, attack)
            run.survivors()
    finally:
        journal.flush()
    record = _record(job, journal)
    journal.close(record)
    return record


class _Run:
    """The examples still standing, and what has been spent on each."""

    def __init__(self, job: Job, journal: Journal, progress: Progress) -> None:
        self.job, self.journal, self.progress = job, journal, progress
        self.judge = Judge(job.classifier, job.threat)
        self.oracle = Oracle(job.search)
        self.labels: dict[int, int] = {}
        self.standing = [id_ for id_ in job.ids if id_ not in journal.done]
        self.cost: dict[int, dict[str, list[int]]] = {id_: {} for id_ in self.standing}
        self.errors: dict[int, str] = {}

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        x, y = self.job.dataset.batch(ids)
        return x.to(self.job.device), y.to(self.job.device)

    def clean(self) -> None:
        """Judge the images as they are; a misclassified one needs no attack."""
        begun, wrong, todo = time.perf_counter(), 0, self.standing
        self.progress.start("clean", len(todo))
        self.standing = []
        for at in range(0, len(todo), self.job.batch_size):
            ids = todo[at : at + self.job.batch_size]
            x, y = self.fetch(ids)
            for id_, label, prediction in zip(ids, y.tolist(), self.judge.predict(x).tolist(), strict=True):
                self.labels[id_] = label
                if prediction == label:
                    self.standing.append(id_)
                    continue
                wrong += 1
                error = "the model's output on the clean image is not finite" if prediction < 0 else None
                self._file(id_, prediction, broken_by="clean", error=error)
            self.progress.advance(at + len(ids), f"{wrong} misclassified")
        self._clock("clean", begun)

    def attack(self, label: str, attack: Attack) -> None:
        """Run one attack on what is standing; the broken are filed at once."""
        begun, todo = time.perf_counter(), self.standing
        if not todo:
            return
        self.progress.start(label, len(todo))
        survivors: set[int] = set()
        settled = 0

        def finish(outcome: engine.Outcome) -> None:
            nonlocal settled
            settled += 1
            self.cost[outcome.id][label] = [outcome.forwards, outcome.backwards]
            if outcome.error is not None:
                self.errors[outcome.id] = f"{label}: {outcome.error}"
            if outcome.broken:
                self._file(
                    outcome.id, self.labels[outcome.id], broken_by=label, restart=outcome.restart, at_round=outcome.round,
                    distance=outcome.distance, prediction=outcome.prediction, x_adv=outcome.x_adv,
                )  # fmt: skip
            else:
                survivors.add(outcome.id)
            self.progress.advance(settled, f"{settled - len(survivors)} broken")

        engine.run(
            attack, self.oracle, self.judge, self.fetch, todo, self.job.threat,
            seed=self.job.spec.seed, batch_size=self.job.batch_size, finish=finish,
        )  # fmt: skip
        self.standing = [id_ for id_ in todo if id_ in survivors]
        self._clock(label, begun)

    def survivors(self) -> None:
        """What no attack has broken is robust, as far as this plan can tell."""
        for id_ in self.standing:
            self._file(id_, self.labels[id_])

    def _file(
        self, id_: int, clean_prediction: int, *, broken_by: str | None = None, restart: int | None = None,
        at_round: int | None = None, distance: float | None = None, prediction: int | None = None,
        x_adv: Tensor | None = None, error: str | None = None,
    ) -> None:  # fmt: skip
        record = ExampleRecord(
            id=id_, label=self.labels[id_], clean_prediction=clean_prediction, robust=broken_by is None,
            broken_by=broken_by, restart=restart, round=at_round, distance=distance, prediction=prediction,
            cost=self.cost[id_], error=error or self.errors.get(id_),
        )  # fmt: skip
        self.journal.add(record, x_adv)

    def _clock(self, label: str, begun: float) -> None:
        held = self.journal.seconds
        held[label] = held.get(label, 0.0) + time.perf_counter() - begun


def _record(job: Job, journal: Journal) -> RunRecord:
    examples = [journal.done[id_] for id_ in job.ids]
    clean, robust, attacks = summarise(examples, job.plan.labels(), journal.seconds)
    flags = set(job.flags) | ({"not-finite"} if any(e.error for e in examples) else set())
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
        notes=job.notes,
        environment={**describe_environment(), "device": str(job.device), "torch_threads": torch.get_num_threads()},
        run=str(job.folder),
    )
