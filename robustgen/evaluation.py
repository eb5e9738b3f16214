"""One evaluation: clean pass, health checks, then each attack on what is left, then the record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustgen import engine
from robustgen.attacks.base import sees
from robustgen.attacks.losses import goal_margin, margin
from robustgen.attacks.queries import counts_queries
from robustgen.class_images import starts_in_class
from robustgen.defended import crossed_by
from robustgen.distances import summarise_distances
from robustgen.environment import describe_environment
from robustgen.example import ExampleRecord
from robustgen.flags import FLAGS
from robustgen.health import black_box_wins, broken_without_gradients
from robustgen.inspection import inspect_job
from robustgen.journal import Journal
from robustgen.judge import VOTES, Judge, clean_streams, strict_float32
from robustgen.oracle import Oracle
from robustgen.own_plans import keep_plan
from robustgen.precision import SearchModel
from robustgen.prepare import Job
from robustgen.progress import Progress
from robustgen.queries import QueriesSummary, summarise_queries
from robustgen.ranks import Ranks
from robustgen.record import RunRecord, StochasticScore, summarise
from robustgen.rng import stage_seed
from robustgen.scoring import score_stochastic
from robustgen.stages import Stage
from robustgen.targets import summarise_targets
from robustgen.witnesses import slot_key

__all__ = ["open_journal", "run_once"]

_QUIET = 0.005  # share of the examples that a rung must break for the next, larger one to be run


def run_once(job: Job, progress: Progress, ranks: Ranks) -> RunRecord:
    """As `run_job`, for a job whose goal is one: an example has one target, or none."""
    journal = open_journal(job, ranks)
    if journal.finished:
        progress.note(f"this run was finished before; its record is read from {job.folder}.")
        return RunRecord.load(job.folder)
    for note in (*job.notes, *job.asides):
        progress.note(note)
    if journal.done:
        progress.note(f"{len(journal.done)} of {len(job.ids)} examples were finished before; going on.")
    try:
        # A user's classifier may draw from torch's global generator: seeded here, given back as found.
        with strict_float32(), torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
            torch.manual_seed(job.spec.seed)
            run = _Run(job, journal, progress, ranks)
            run.clean()
            for stage in job.stages:
                run.attack(stage)
            run.grow()
            run.escalate()
            run.survivors()
            journal.flush()
            ranks.gather(None)
            if ranks.first:
                journal.recover()
                journal.close(_record(job, journal, run), list(run.slots))
        ranks.gather(None)
    except KeyboardInterrupt:
        progress.note(f"{len(journal.done)} of {len(job.ids)} examples are kept in {job.folder}.")
        raise
    finally:
        try:
            if not journal.finished:
                journal.flush()
        finally:
            journal.release()
    return RunRecord.load(job.folder)


def open_journal(job: Job, ranks: Ranks) -> Journal:
    """The journal: rank 0 makes the folder, then the others read it, before anybody writes more."""
    shape = job.dataset.shape
    kept = 1 if job.threats[0].bounded else 2 * (1 + len(job.stages))  # images an example, and the packed ones beside
    kept *= job.classes if job.goal.kind == "all" else 1
    needed = len(job.ids) * kept * (4 * shape[0] * shape[1] * shape[2] + 1024)
    journals = [Journal(job.folder, job.spec, shape, bytes_needed=needed)] if ranks.first else []
    if ranks.first:
        keep_plan(job.folder, job.plan)
    ranks.gather(None)
    if not ranks.first:
        journals = [Journal(job.folder, job.spec, shape, bytes_needed=needed, rank=ranks.rank)]
    ranks.gather(None)
    return journals[0]


class _Run:
    """The examples still standing, and what has been spent on each."""

    def __init__(self, job: Job, journal: Journal, progress: Progress, ranks: Ranks) -> None:
        self.job, self.journal, self.progress, self.ranks = job, journal, progress, ranks
        begun = time.perf_counter()
        self.health = inspect_job(job, self.fetch, progress)
        self._clock("health", begun)
        self.randomised = "randomised" in self.health.flags
        votes = VOTES if self.randomised else (1,)
        self.judges = {threat: Judge(job.classifier, threat, votes=votes) for threat in job.threats}
        self.oracles: dict[tuple[str, int] | None, Oracle] = {None: self._asks(job.search, job.plan.eot)}
        self.labels: dict[int, int] = {}
        self.targets: dict[int, int] = {}  # empty without a goal
        self.before = set(journal.done)  # by earlier processes, and known to every rank
        self.standing = [id_ for id_ in job.ids if id_ not in journal.done][ranks.rank :: ranks.size]
        self.cost: dict[int, dict[str, list[int]]] = {id_: {} for id_ in self.standing}
        self.errors: dict[int, str] = {}
        self.missed: set[int] = set()
        self.clean_margin: dict[int, float] = {}
        self.margin: dict[int, float] = {}
        self.hits: dict[int, list[tuple[Stage, engine.Outcome]]] = {}
        # Without an eps each attack keeps a witness of its own, in a slot of its own.
        self.slots = {} if job.threats[0].bounded else {stage.label: k for k, stage in enumerate(job.stages, 1)}
        self.flags: set[str] = set()
        self.ran = [stage.label for stage in job.stages]
        self.notes: list[str] = []

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        x, y = self.job.dataset.batch(ids)
        return x.to(self.job.device), y.to(self.job.device)

    def clean(self) -> None:
        """Judge the images as they are; a misclassified one needs no attack. The rest is put in order of margin."""
        begun, wrong, seen = time.perf_counter(), 0, self.journal.passed.get("clean", {})
        todo = [id_ for id_ in self.standing if id_ not in seen]
        self.progress.start("clean", len(todo))
        judge = next(iter(self.judges.values()))
        for at in range(0, len(todo), self.job.batch_size):
            ids = todo[at : at + self.job.batch_size]
            for row in self._look(judge, ids):
                wrong += not self._file_clean(*row)
            self.progress.advance(at + len(ids), f"{wrong} misclassified")
        self._line_up()
        self.journal.flush()
        self._clock("clean", begun)

    def _look(self, judge: Judge, ids: Sequence[int]) -> Iterator[tuple[int, int, int, int | None, float]]:
        """Id, label, prediction, target and distance from success of each clean image."""
        x, y = self.fetch(ids)
        predictions, logits = judge.see(x, clean_streams(self.job.spec.seed, ids))
        targets = self.job.goal.targets(y, logits)
        gaps = margin(logits, y) if targets is None else goal_margin(logits, targets)
        aims = [None] * len(ids) if targets is None else targets.tolist()
        yield from zip(ids, y.tolist(), predictions.tolist(), aims, gaps.tolist(), strict=True)

    def _file_clean(self, id_: int, label: int, prediction: int, target: int | None, gap: float) -> bool:
        """Let an example stand that is classified right and not skipped, file any other; whether it is right."""
        self.labels[id_] = label
        if target is not None:
            self.targets[id_] = target
        right = prediction == label
        if right and target != label:
            aim = {} if target is None else {"target": target}
            self.journal.step("clean", id_, {"label": label, "margin": gap if math.isfinite(gap) else None, **aim})
            return True
        error = "the model's output on the clean image is not finite" if prediction < 0 else None
        self.journal.add(self._example(id_, prediction, None, error), None)
        return right

    def _line_up(self) -> None:
        """What is standing, in order of its clean margin."""
        seen = self.journal.passed.get("clean", {})
        self.standing = [id_ for id_ in self.standing if id_ in seen]
        self.labels |= {id_: seen[id_]["label"] for id_ in self.standing}
        self.targets |= {id_: seen[id_]["target"] for id_ in self.standing if "target" in seen[id_]}
        margins = {id_: seen[id_]["margin"] for id_ in self.standing}
        self.clean_margin = {id_: math.inf if gap is None else gap for id_, gap in margins.items()}
        self.margin = dict(self.clean_margin)
        self.standing.sort(key=lambda id_: (self.clean_margin[id_], id_))

    def attack(self, stage: Stage) -> None:
        """Run one attack on what is standing; the broken are filed at once."""
        begun, seen = time.perf_counter(), self.journal.passed.get(stage.label, {})
        if stage.most is not None and self._left_before(stage) > stage.most:
            return
        share = math.inf if stage.within is None else stage.within
        due = [id_ for id_ in self.standing if share == math.inf or self.margin[id_] < share * self.clean_margin[id_]]
        for id_ in due:
            if id_ in seen:
                self._left(stage, engine.Outcome.from_json(id_, seen[id_]))
        todo = [id_ for id_ in due if id_ not in seen]
        if not todo:
            return
        self.progress.start(stage.label, len(todo))
        broken: set[int] = set()
        settled = 0

        def finish(outcome: engine.Outcome) -> None:
            nonlocal settled
            settled += 1
            if stage.blind and not outcome.broken:  # how near another classifier came says nothing of this one
                outcome = replace(outcome, margin=math.inf, missed=False, nearest=None)
            if sees(stage.attack) == "labels":  # which have no margin
                outcome = replace(outcome, margin=math.inf, nearest=None)
            nearer, again = outcome.margin < self.margin[outcome.id], outcome.id in self.hits
            self._left(stage, outcome)
            if outcome.broken:
                broken.add(outcome.id)
            if outcome.broken and not self.job.plan.individual:
                self._file(outcome.id, (stage, outcome), None)
            else:
                witness = None if again and not self.slots else outcome.x_adv
                near, slot = outcome.nearest if nearer else None, self.slots.get(stage.label, 0)
                self.journal.step(stage.label, outcome.id, outcome.to_json(), witness, near, slot=slot)
            self.progress.advance(settled, f"{len(broken)} broken")

        engine.run(
            stage.attack, self._oracle(stage), self.judges[stage.threat], self.fetch, todo, stage.threat,
            seed=stage_seed(self.job.spec.seed, stage.label), batch_size=self.job.batch_size, finish=finish,
            keep_nearest=self.randomised or self.job.plan.crosses, only_last=stage.blind, unasked=stage.elsewhere,
            starts=self._starts(stage), goals=self._goals if self.job.goal.targeted else None, queries=stage.queries,
        )  # fmt: skip
        if not self.job.plan.individual:
            self.standing = [id_ for id_ in self.standing if id_ not in broken]
        self._clock(stage.label, begun)

    def _goals(self, ids: Sequence[int]) -> Tensor:
        """(B,) int64: the class that each must become."""
        return torch.tensor([self.targets[id_] for id_ in ids])

    def _starts(self, stage: Stage) -> Callable[[int], Tensor | None] | None:
        """Where the attacks before came nearest, for a rung that begins there; by labels, at an image of the goal."""
        if self.targets and sees(stage.attack) == "labels":
            labels, judge = self.job.dataset.labels, self.judges[stage.threat]
            return starts_in_class(self.fetch, labels, judge, self.targets, seed=self.job.spec.seed)
        if stage.rung is None or not stage.rung.warm:
            return None
        self.journal.flush()
        near = self.journal.parts("near")
        return lambda id_: near[id_] if id_ in near else None  # noqa: SIM401 -- no dict

    def _oracle(self, stage: Stage) -> Oracle:
        """The search form, with the gradient and the draws that a rung asks for."""
        rung = stage.rung
        key = None if rung is None else (rung.crossing, rung.eot)
        if key not in self.oracles:
            assert rung is not None
            model = crossed_by(self.job.search, self.job.classifier, rung.crossing)
            self.oracles[key] = self._asks(model, 1 if rung.crossing == "transfer" else rung.eot)
        return self.oracles[key]

    def _asks(self, model: SearchModel, eot: int) -> Oracle:
        """An oracle that sends no more at once than the run may hold."""
        return Oracle(model, eot=eot, rows=self.job.batch_size)

    def grow(self) -> None:
        """Run what grows, until one breaks fewer than one in two hundred, and fewer than one, of all examples."""
        for stage in self.job.growth:
            self.ran.append(stage.label)
            self.attack(stage)
            mine = sum(e.broken_by == stage.label for id_, e in self.journal.done.items() if id_ not in self.before)
            again = sum(e.broken_by == stage.label for e in self.journal.done.values()) if self.ranks.first else mine
            if sum(self.ranks.gather(again)) < max(1, _QUIET * len(self.job.ids)):
                return

    def _left(self, stage: Stage, outcome: engine.Outcome) -> None:
        """Remember what an attack left of an example, now or in an earlier process."""
        self.cost[outcome.id][stage.label] = [outcome.forwards, outcome.backwards]
        self.margin[outcome.id] = min(self.margin[outcome.id], outcome.margin)
        if outcome.missed:
            self.missed.add(outcome.id)
        if outcome.error is not None:
            self.errors[outcome.id] = f"{stage.label}: {outcome.error}"
        if outcome.broken and self.job.plan.individual:
            outcome = replace(outcome, x_adv=None) if self.slots else outcome  # the journal has it
            self.hits.setdefault(outcome.id, []).append((stage, outcome))

    def _left_before(self, stage: Stage) -> float:
        """The share of the examples classified right that no attack before this one has broken, of all ranks."""
        _, left, right = self._count(self.job.after(stage))
        return left / max(1, right)

    def _count(self, stages: Sequence[Stage]) -> tuple[int, ...]:
        """Before these stages, on all ranks: examples broken without gradients, those left, those classified right."""
        mine = [e for id_, e in self.journal.done.items() if self.ranks.first or id_ not in self.before]
        later = {stage.label for stage in stages}  # what they broke stood when this was asked first
        won = sum(broken_without_gradients(e) for e in mine if e.broken_by not in later)
        left = sum(e.robust or e.broken_by in later for e in mine)
        right = sum(e.clean_prediction == e.label for e in mine)
        counts = self.ranks.gather((won, len(self.standing) + left, len(self.standing) + right))
        return tuple(sum(column) for column in zip(*counts, strict=True))

    def escalate(self) -> None:
        """Where a flag says that gradients may lie, run what the plan keeps for that case."""
        self.flags = set(self.health.flags)
        won, left, _ = self._count(self.job.escalation)
        if not self.job.on_surrogates and black_box_wins(won, left):
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
        """File what is left: robust, as far as this plan can tell, or, where every attack saw all, the first break.

        Without an eps the nearest break, with the distance of every other.
        """
        if self.slots:
            self.journal.flush()
        images = self.journal.parts()
        for id_ in self.standing:
            hits = self.hits.get(id_, [])
            everywhere = [stage.label for stage, _ in hits] if self.job.plan.individual else None
            hit = min(hits, key=lambda h: h[1].distance or 0.0) if self.slots and hits else hits[0] if hits else None
            if self.slots and hit is not None:
                image = images[slot_key(id_, self.slots[hit[0].label])]
                hit = (hit[0], replace(hit[1], x_adv=image))
            self._file(id_, hit, everywhere)

    def _file(self, id_: int, hit: tuple[Stage, engine.Outcome] | None, everywhere: list[str] | None) -> None:
        record = self._example(id_, self.labels[id_], hit, self.errors.get(id_))
        x_adv = None if hit is None else hit[1].x_adv
        found = {stage.label: float(o.distance or 0.0) for stage, o in self.hits.get(id_, [])} if self.slots else None
        self.journal.add(replace(record, broken_by_all=everywhere, distances=found), x_adv)

    def _example(
        self, id_: int, clean_prediction: int, hit: tuple[Stage, engine.Outcome] | None, error: str | None
    ) -> ExampleRecord:
        label = self.labels[id_]
        base = ExampleRecord(
            id=id_, label=label, clean_prediction=clean_prediction, robust=hit is None and clean_prediction == label,
            broken_by=None if clean_prediction == label else "clean", cost=self.cost[id_], missed=id_ in self.missed,
            error=error, target=self.targets.get(id_),
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


def _score(job: Job, examples: Sequence[ExampleRecord], journal: Journal) -> StochasticScore | None:
    """The figures are about the label, so a goal has the majority's verdict alone; a server is not paid for more."""
    return None if job.goal.targeted or job.remote else score_stochastic(job, examples, journal)


def _queries(job: Job, examples: Sequence[ExampleRecord], ran: Sequence[str]) -> QueriesSummary | None:
    counted = counts_queries(job.plan, job.threats[0]) and not job.on_surrogates
    return summarise_queries(examples, ran) if counted else None


def _record(job: Job, journal: Journal, run: _Run) -> RunRecord:
    examples, clock = [journal.done[id_] for id_ in job.ids], journal.all_seconds()
    clean, robust, attacks = summarise(examples, run.ran, clock)
    distances, nearest = summarise_distances(examples, run.ran) if run.slots else (None, None)
    flags = run.flags | ({"not-finite"} if any(e.error for e in examples) else set())
    return RunRecord(
        stochastic=_score(job, examples, journal) if run.randomised else None,
        targets=summarise_targets(examples, job.classes),
        distances=distances,
        nearest=nearest,
        queries=_queries(job, examples, run.ran),
        spec=job.spec.table(),
        identity=job.spec.identity(),
        n=len(examples),
        clean_accuracy=clean,
        robust_accuracy=robust,
        attacks=attacks,
        forwards=len(examples) + sum(a.forwards for a in attacks),
        backwards=sum(a.backwards for a in attacks),
        seconds=round(sum(clock.values()), 3),
        flags=tuple(sorted(flags)),
        health=run.health.measured,
        notes=(*job.notes, *run.notes),
        environment={**describe_environment(), "device": str(job.device), "torch_threads": torch.get_num_threads()},
        run=str(job.folder),
    )
