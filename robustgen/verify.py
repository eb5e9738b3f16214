"""Check a finished run from what it left behind: no attack is run again.

Distance, range, label and prediction are measured anew in float32, on the images that were stored; totals, intervals
and hashes are computed anew. What cannot be recomputed from the folder is not vouched for: seconds, flags, notes, the
cost of single examples, and that examples filed as robust really withstand the attacks.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustgen.attacks.losses import goal_margin, margin
from robustgen.attacks.plan_files import PLAN_FILE, disagreements
from robustgen.certify.check import Redraw, verify_certification
from robustgen.certify.patches_run import holds_patches
from robustgen.certify.record import holds_certification
from robustgen.classifier import Classifier
from robustgen.dataset import Dataset
from robustgen.distances import summarise_distances
from robustgen.environment import pick_device
from robustgen.errors import ArtifactError, RecordError, SpecError
from robustgen.example import ExampleRecord
from robustgen.goals import UNTARGETED, Goal
from robustgen.judge import VOTES, Judge, clean_streams, judging_streams, strict_float32
from robustgen.prepare import DEFAULT_BATCH
from robustgen.progress import Progress, Silent
from robustgen.queries import summarise_queries
from robustgen.record import RunRecord, summarise
from robustgen.request import is_address
from robustgen.rng import ExampleRng, stage_seed
from robustgen.runs import load_run_classifier, load_run_data, read_examples
from robustgen.spec import RunSpec, expand_ids
from robustgen.targets import summarise_targets
from robustgen.threat import ThreatModel
from robustgen.verification import Findings, Verification
from robustgen.verify_remote import misplaced, without_server
from robustgen.verify_targets import verify_targets
from robustgen.witnesses import read_found_by, read_witnesses

__all__ = ["verify_run"]

_CLOSE = 1e-3  # logit margins below this may be decided by the rounding of another machine
_REFUTED = 0.19  # lead of the label, in 255 passes, that three standard deviations of an even chance do not explain
_CLEARLY = 0.6  # lead, in 255 passes, of a class that loses a majority of 21 less than once in two thousand


def verify_run(
    run: Path, *, classifier: str | None = None, weights: Path | None = None, data_dir: Path | None = None,
    device: str = "auto", redraw: Redraw = Redraw(), progress: Progress | None = None,  # noqa: B008 -- frozen
) -> Verification:  # fmt: skip
    """Recompute all that can be recomputed of a finished run, of attacks or of a certification.

    Args:
        run: a run folder.
        classifier: what to load instead of the name in the record; its weights must be those of the run.
        weights: file of weights, as in `evaluate`.
        data_dir: where full data sets lie.
        device: "auto", "cpu", "cuda" or "mps".
        redraw: votes to draw again; for certifications only.
        progress: told how drawing goes.

    Raises:
        SpecError, RecordError: no finished run, or a file in it that cannot be read, or nothing to check it with.
    """
    if holds_certification(run):
        return verify_certification(
            run, classifier=classifier, weights=weights, data_dir=data_dir, device=device, redraw=redraw,
            progress=progress or Silent(),
        )  # fmt: skip
    if holds_patches(run):
        raise SpecError(
            f"{run} is an exact certification, and no draw stands behind it; run its certify-patches command again "
            "with --out FOLDER and compare patches.jsonl."
        )
    if redraw.asked:
        raise SpecError(f"--fresh and --replay draw votes of a certification; {run} holds images, all measured anyway.")
    record = RunRecord.load(run)
    if record.spec.get("goal") == "all":
        return verify_targets(
            run, record,
            lambda part: verify_run(part, classifier=classifier, weights=weights, data_dir=data_dir, device=device),
        )  # fmt: skip
    where, check = pick_device(device), _Check(run, record, read_examples(run))
    if check.paperwork():
        try:
            dataset, ids = load_run_data(run, record.spec, data_dir)
            if is_address(record.spec["classifier"]) and classifier is None:
                return check.without_server(dataset)
            model = load_run_classifier(
                run, record.spec, dataset.shape, given=classifier, weights=weights, command=f"robustgen verify {run}"
            )
        except ArtifactError as error:
            check.wrong.append(str(error))
        else:
            check.checked.append(f"data and weights: hashes of {len(ids)} examples and of the network")
            with strict_float32(), torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
                torch.manual_seed(record.spec["seed"])
                check.images(dataset, model.to(where))
    doubt = "margins so small that rounding" + (", or chance," if check.random else "") + " may decide"
    return Verification(
        run=run, checked=tuple(check.checked), wrong=tuple(check.wrong), doubtful=tuple(sorted(check.doubtful)),
        doubt=doubt,
    )  # fmt: skip


class _Check(Findings):
    """Of a run of attacks."""

    def __init__(self, run: Path, record: RunRecord, examples: Sequence[ExampleRecord]) -> None:
        super().__init__(run)
        self.record, self.examples = record, examples
        self.threats = {str(threat): threat for threat in ThreatModel.parse_all(record.spec["threat"], bare=True)}
        self.random = "randomised" in record.flags
        self.votes = VOTES if self.random else (1,)
        self.goal = Goal.parse(record.spec.get("goal", str(UNTARGETED)))
        self.columns = 0 if record.targets is None else len(record.targets.attacked[0])  # classes, as the record says

    def paperwork(self) -> bool:
        """Identity, ids, consistency and totals: what needs neither data nor network. False: nothing more to check."""
        return self._spec() and self._rows() and self._verdicts() and self._totals()

    def _spec(self) -> bool:
        path = self.run / "spec.json"
        try:
            spec = RunSpec.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError) as error:
            raise RecordError(f"{path} cannot be read: {error}.") from None
        return self.identity(spec, self.record.identity, self.record.spec)

    def _rows(self) -> bool:
        wanted = expand_ids(self.record.spec["ids"])
        return self.rows([example.id for example in self.examples], wanted, "examples.jsonl")

    def _verdicts(self) -> bool:
        """The fields of an example agree with each other and with the attacks that were run."""
        names = {attack.name for attack in self.record.attacks}
        for e in self.examples:
            right = e.clean_prediction == e.label
            expected = None if right and e.robust else "clean" if not right else e.broken_by
            if e.robust != (right and e.broken_by is None) or e.broken_by != expected:
                self.wrong.append(
                    f"example {e.id}: its verdict was edited: robust is {e.robust}, label {e.label}, clean prediction "
                    f"{e.clean_prediction}, broken by {e.broken_by}."
                )
            elif e.broken_by not in {None, "clean", *names}:
                self.wrong.append(f"example {e.id} is broken by '{e.broken_by}', which the record does not list.")
            elif self.goal.targeted != (e.target is not None):
                self.wrong.append(f"example {e.id}: its target was edited: {e.target} in a run with goal {self.goal}.")
            elif e.skipped and e.broken_by not in {None, "clean"}:
                self.wrong.append(f"example {e.id} is filed as broken, but its label {e.label} is its target.")
        self.checked.append("verdicts: each agrees with its own row")
        return not self.wrong

    def _totals(self) -> bool:
        """Accuracies, intervals and sums follow from the rows."""
        order = {example.id: example for example in self.examples}
        examples = [order[id_] for id_ in expand_ids(self.record.spec["ids"])]
        seconds = {attack.name: attack.seconds for attack in self.record.attacks}
        clean, robust, attacks = summarise(examples, list(seconds), seconds)
        free = not all(threat.bounded for threat in self.threats.values())
        distances, nearest = summarise_distances(examples, list(seconds)) if free else (None, None)
        expected: dict[str, Any] = {
            "distances": distances, "nearest": nearest, "targets": summarise_targets(examples, self.columns),
            "queries": None if self.record.queries is None else summarise_queries(examples, list(seconds)),
            "n": len(examples), "clean_accuracy": clean, "robust_accuracy": robust, "attacks": attacks,
            "forwards": len(examples) + sum(a.forwards for a in attacks),
            "backwards": sum(a.backwards for a in attacks),
        }  # fmt: skip
        for field, value in expected.items():
            said = getattr(self.record, field)
            if said != value:
                self.wrong.append(f"record.json: {field} was edited: {said}, the rows say {value}.")
        self.checked.append("totals: accuracies, intervals and sums")
        return not self.wrong

    def images(self, dataset: Dataset, model: Classifier) -> None:
        """All that needs the data and the network."""
        self.plan_file(dataset, model)
        self.labels_and_predictions(dataset, model)
        self.witnesses(dataset, model)
        self.distances(dataset, model)

    def without_server(self, dataset: Dataset) -> Verification:
        """All but predictions, of a target that only its server can speak for."""
        self.checked.append(f"data: hash of {len(self.examples)} examples")
        without_server(self, dataset)
        again = f"robustgen verify {self.run} --classifier {self.record.spec['classifier']}"
        told = f"predictions, which only the server knows; to ask it again, a query for each image: {again}"
        return Verification(
            run=self.run, checked=tuple(self.checked), wrong=tuple(self.wrong), unchecked=(told,),
        )  # fmt: skip

    def labels_and_predictions(self, dataset: Dataset, model: Classifier) -> None:
        """Labels as in the data; the class of each clean image as recorded."""
        judge = Judge(model, next(iter(self.threats.values())), votes=self.votes)
        for batch in _batches(self.examples):
            x, y = (part.to(model.mean.device) for part in dataset.batch([e.id for e in batch]))
            predictions, logits = judge.see(x, clean_streams(self.record.spec["seed"], [e.id for e in batch]))
            self._targets(batch, y, logits)
            margins = margin(logits, y)
            if self.random and not judge.stochastic:
                said = torch.tensor([e.clean_prediction for e in batch]).to(y).clamp(0, logits.shape[1] - 1)
                predictions, margins = _redrawn(judge, x, said, None, _CLEARLY)
            for e, label, guess, gap in zip(batch, y.tolist(), predictions.tolist(), margins.tolist(), strict=True):
                if e.label != label:
                    self.wrong.append(f"example {e.id}: its label was edited: {e.label}, the data says {label}.")
                elif e.clean_prediction != guess and not self._excused(e.id, gap):
                    self.wrong.append(
                        f"example {e.id}: the clean image is classified {guess}, the record says {e.clean_prediction}."
                    )
        self.checked.append(f"clean images: label and prediction of {len(self.examples)}")

    def _targets(self, batch: Sequence[ExampleRecord], y: Tensor, logits: Tensor) -> None:
        """The class that each had to become follows from the goal; the matrix has a column for each class."""
        targets = self.goal.targets(y, logits)
        if targets is None:
            return
        if self.columns != logits.shape[1]:
            self.wrong.append(f"record.json: targets has {self.columns} columns for {logits.shape[1]} classes.")
            return
        for row, (e, target) in enumerate(zip(batch, targets.tolist(), strict=True)):
            if e.target == target:
                continue
            other = e.target if e.target in range(self.columns) and e.target != e.label else None
            close = other is not None and self.goal.kind == "least-likely"
            if not close or not self._excused(e.id, float(logits[row, other] - logits[row, target])):
                self.wrong.append(f"example {e.id}: its target was edited: {e.target}, {self.goal} says {target}.")

    def plan_file(self, dataset: Dataset, model: Classifier) -> None:
        """The run's copy of a plan of the user's own is the one that was run."""
        x, _ = dataset.batch([self.examples[0].id])
        classes = model(x.to(model.mean.device)).shape[1]
        self.wrong += disagreements(self.run, self.record.spec, classes)
        if self.record.spec.get("plan_sha256"):
            self.checked.append(f"plan: {PLAN_FILE} hashes to {self.record.spec['plan_sha256'][:12]}")

    def witnesses(self, dataset: Dataset, model: Classifier) -> None:
        """Each broken example has an image inside the threat model that the network misclassifies; no other has one."""
        broken = {e.id: e for e in self.examples if e.broken_by not in (None, "clean")}
        times: Counter[int] = Counter()
        waiting: dict[str | None, list[tuple[ExampleRecord, Tensor]]] = defaultdict(list)  # by attack
        for id_, image in read_witnesses(self.run):
            times[id_] += 1
            if id_ not in broken:
                continue
            held = waiting[broken[id_].broken_by]
            held.append((broken[id_], image))
            if len(held) == DEFAULT_BATCH:
                self._judge(held, dataset, model)
                held.clear()
        for held in waiting.values():
            self._judge(held, dataset, model)
        self.say([id_ for id_ in broken if id_ not in times], "is filed as broken, but has no witness",
                  "are filed as broken, but have no witness")  # fmt: skip
        extra = sorted(set(times) - set(broken))
        self.say(extra, "has a witness, but is not filed as broken", "have a witness, but are not filed as broken")
        twice = sorted(id_ for id_, count in times.items() if count > 1)
        self.say(twice, "has two witnesses", "have two witnesses each")
        self.checked.append(f"witnesses: range, distance and prediction of {len(set(times) & set(broken))}")

    def distances(self, dataset: Dataset, model: Classifier) -> None:
        """Without an eps: each attack's distance of each example is that of its own witness; the nearest is filed."""
        if all(threat.bounded for threat in self.threats.values()):
            return
        count = 0
        for e in self.examples:
            least = min((e.distances or {}).values(), default=None)
            if e.distance != least or (least is not None and (e.distances or {}).get(str(e.broken_by)) != least):
                self.wrong.append(f"example {e.id}: its distance {e.distance} is not the least of {e.distances}.")
        for label in (attack.name for attack in self.record.attacks):
            mine = {e.id: e for e in self.examples if label in (e.distances or {}) and e.broken_by != label}
            held = [(mine[id_], image) for id_, image in read_found_by(self.run, label) if id_ in mine]
            count += len(held)
            for at in range(0, len(held), DEFAULT_BATCH):
                part = held[at : at + DEFAULT_BATCH]
                self._judge([(_as_found_by(label, e), image) for e, image in part], dataset, model)
            missing = sorted(set(mine) - {e.id for e, _ in held})
            self.say(missing, f"has a distance by {label}, but no witness of it",
                     f"have a distance by {label}, but no witness of it")  # fmt: skip
        self.checked.append(f"distances: {count} witnesses of attacks that another came nearer than")

    def _judge(self, held: Sequence[tuple[ExampleRecord, Tensor]], dataset: Dataset, model: Classifier) -> None:
        """Measure some examples' witnesses anew."""
        fits = [(e, image) for e, image in held if image.shape == dataset.shape]
        for e, image in held:
            if image.shape != dataset.shape:
                self.wrong.append(f"example {e.id}: its witness is {tuple(image.shape)}, expected {dataset.shape}.")
        if not fits:
            return
        device = model.mean.device
        x, y = (part.to(device) for part in dataset.batch([e.id for e, _ in fits]))
        x_adv = torch.stack([image for _, image in fits]).to(device)
        judge = Judge(model, next(iter(self.threats.values())), votes=self.votes)
        aims = [e.target for e, _ in fits if e.target is not None]
        goal = torch.tensor(aims).to(y) if len(aims) == len(fits) else None
        if self.random and not judge.stochastic:
            predictions, margins = _redrawn(judge, x_adv, y, goal, _REFUTED)
        else:
            streams = self._streams([e for e, _ in fits]) if judge.stochastic else None
            predictions, logits = judge.decide(x_adv, y, streams, goal)
            margins = _gap(logits, y, goal)
        for k, (e, _) in enumerate(fits):
            threat = self.threats.get(e.threat or "", None)
            if threat is None:
                self.wrong.append(f"example {e.id} was broken under '{e.threat}', which is no threat model of the run.")
                continue
            said = self._about(e, threat, x[k : k + 1], x_adv[k : k + 1], int(predictions[k]), float(margins[k]))
            if said:
                self.wrong.append(f"example {e.id}: {said}")

    def _streams(self, examples: Sequence[ExampleRecord]) -> ExampleRng:
        """Those that the judge had when it called these examples, all of one attack, broken."""
        (label,) = {str(e.broken_by) for e in examples}
        seed = stage_seed(self.record.spec["seed"], label)
        rng = ExampleRng.of(seed, [e.id for e in examples], [e.restart or 0 for e in examples])
        return judging_streams(rng, torch.tensor([(e.round or 0) + 1 for e in examples]))

    def _about(
        self, e: ExampleRecord, threat: ThreatModel, x: Tensor, x_adv: Tensor, guess: int, gap: float
    ) -> str | None:
        """What is wrong with one witness, or None."""
        if (said := misplaced(e, threat, x, x_adv)) is not None:
            return said
        if self._excused(e.id, gap):
            return None
        if e.target is not None and guess != e.target:
            return f"its witness is classified {guess}, and its target is {e.target}: it does not reach it."
        if guess == e.label:
            return f"its witness is classified {guess}, as the label says: it breaks nothing."
        if e.prediction is not None and guess != e.prediction and not self.random:
            return f"its prediction was edited: {e.prediction}, the witness is classified {guess}."
        return None

    def _excused(self, id_: int, gap: float) -> bool:
        """Whether so small a margin may be decided by rounding; remembers the example."""
        close = abs(gap) < _CLOSE
        if close:
            self.doubtful.add(id_)
        return close


def _redrawn(judge: Judge, x: Tensor, y: Tensor, goal: Tensor | None, sure: float) -> tuple[Tensor, Tensor]:
    """Prediction and margin (B,) of a random classifier whose chance cannot be repeated, by its largest vote.

    Args:
        judge: with `VOTES`.
        x: images (B, C, H, W).
        y: (B,) the label that a break must avoid; of clean images the class that was recorded.
        goal: (B,) what it must reach instead, or None.
        sure: share of the passes by which a side must lead.

    The margin is one of counts, and 0, which is no evidence, where neither side leads by the share `sure` of them.
    """
    passes = judge.passes(x, range(judge.votes[-1]))
    counts = one_hot(passes.argmax(2), passes.shape[2]).sum(0)
    lead = _gap(counts.float(), y, goal)
    return counts.argmax(1), torch.where(lead.abs() < sure * len(passes), 0, lead)


def _gap(logits: Tensor, y: Tensor, goal: Tensor | None) -> Tensor:
    """(B,) how far each is from success; from a wrong class where the goals are no classes of the network."""
    known = goal is not None and bool(((goal >= 0) & (goal < logits.shape[1])).all())
    return goal_margin(logits, goal) if goal is not None and known else margin(logits, y)


def _as_found_by(label: str, e: ExampleRecord) -> ExampleRecord:
    """The example as one attack left it; which class it found there is not recorded."""
    return replace(e, broken_by=label, distance=(e.distances or {})[label], prediction=None)


def _batches(examples: Sequence[ExampleRecord]) -> Iterator[Sequence[ExampleRecord]]:
    for at in range(0, len(examples), DEFAULT_BATCH):
        yield examples[at : at + DEFAULT_BATCH]
