"""How a randomised classifier is scored: on the images that the run ended with, with fresh noise.

During an attack one lucky draw can misclassify an image that is classified correctly nine times in ten. Counting it as
broken, as AutoAttack's `rand` does, understates the classifier; judging by one draw alone hides what an adversary gains
who submits an image again and again. So several figures are given, each with what it is on clean images beside it, and
what each published protocol would have said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustgen.classifier import Classifier
from robustgen.dataset import Dataset
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.example import ExampleRecord
from robustgen.journal import Journal
from robustgen.judge import VOTES, Judge, strict_float32
from robustgen.prepare import DEFAULT_BATCH, Job
from robustgen.progress import Progress, Silent
from robustgen.record import RunRecord, StochasticScore
from robustgen.rng import ExampleRng, child_stream
from robustgen.runs import load_run_classifier, open_run, refuse_goal
from robustgen.statistics import Estimate, majority_of, mean_share, proportion, worst_of
from robustgen.threat import ThreatModel
from robustgen.witnesses import Parts, read_nearest, read_witnesses

__all__ = ["PROTOCOLS", "score_run", "score_stochastic"]

_MAJORITY, _RESUBMISSIONS = 11, 10

PROTOCOLS: dict[str, str] = {
    "diffpure": "one miss among all queries of the attack breaks an example, as AutoAttack's rand counts (Nie 2022)",
    "lee-kim": "one pass over each final image (Lee & Kim 2023)",
    "diffbreak-wc": "any of the draws on the final image fails: the worst case of DiffBreak (2025)",
    "diffbreak-mv": "the majority of the draws on the final image fails: DiffBreak's vote (2025)",
}


def score_stochastic(job: Job, examples: Sequence[ExampleRecord], journal: Journal) -> StochasticScore:
    """Fresh passes over the witness of each broken example, the nearest point of each other, the clean image else."""
    broken, near = journal.parts(), journal.parts("near")
    return _score(
        job.classifier, job.threats[0], job.dataset, examples, lambda e, clean: _final(e, clean, broken, near),
        seed=job.spec.seed, draws=VOTES[0], batch_size=job.batch_size, progress=Silent(),
    )  # fmt: skip


def score_run(
    run: Path, *, draws: int, classifier: str | None = None, weights: Path | None = None, data_dir: Path | None = None,
    device: str = "auto", progress: Progress | None = None,
) -> StochasticScore:  # fmt: skip
    """Score the images of a finished run again, with more draws; no attack is run.

    Raises:
        SpecError: the run is of a classifier that is not random, or fewer draws than resubmissions.
        RecordError, ArtifactError: no finished run, or nothing to score it with.
    """
    if draws < _MAJORITY:
        raise SpecError(f"--draws must be >= {_MAJORITY}, got {draws}.")
    refuse_goal(run, RunRecord.load(run), "score")
    opened, where = open_run(run, data_dir), pick_device(device)
    if opened.record.stochastic is None:
        raise SpecError(f"{run}: its classifier gives the same answer each time; there is nothing to score.")
    model = load_run_classifier(
        run, opened.record.spec, opened.dataset.shape, given=classifier, weights=weights,
        command=f"robustgen score {run}",
    ).to(where)  # fmt: skip
    final = {**dict(read_nearest(run)), **dict(read_witnesses(run))}
    with strict_float32(), torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(opened.record.spec["seed"])
        return _score(
            model, opened.threat, opened.dataset, [opened.examples[id_] for id_ in opened.ids],
            lambda e, clean: final[e.id].to(clean) if e.id in final else clean,
            seed=opened.record.spec["seed"], draws=draws, batch_size=DEFAULT_BATCH, progress=progress or Silent(),
        )  # fmt: skip


def _score(
    classifier: Classifier, threat: ThreatModel, dataset: Dataset, examples: Sequence[ExampleRecord],
    final: Callable[[ExampleRecord, Tensor], Tensor], *, seed: int, draws: int, batch_size: int, progress: Progress,
) -> StochasticScore:  # fmt: skip
    """Count for each example how many of the draws are right, on its clean and on its final image."""
    judge, device = Judge(classifier, threat), classifier.mean.device
    clean_right: list[int] = []
    final_right: list[int] = []
    first: dict[str, list[bool]] = {"score clean": [], "score": []}
    progress.start("score", len(examples))
    for at in range(0, len(examples), batch_size):
        batch = examples[at : at + batch_size]
        ids = [e.id for e in batch]
        x, y = (part.to(device) for part in dataset.batch(ids))
        ended = torch.stack([final(e, image) for e, image in zip(batch, x, strict=True)])
        for images, purpose, counts in ((x, "score clean", clean_right), (ended, "score", final_right)):
            passes = judge.passes(images, range(draws), child_stream(ExampleRng.of(seed, ids), purpose))
            right = passes.argmax(2) == y
            counts += right.sum(0).tolist()
            first[purpose] += right[0].tolist()
        progress.advance(at + len(batch), "")
    unhurt = [right and e.robust and not e.missed for e, right in zip(examples, first["score clean"], strict=True)]
    return _summary(clean_right, final_right, first["score"], sum(unhurt), draws)


def _summary(clean: list[int], final: list[int], first: list[bool], unhurt: int, draws: int) -> StochasticScore:
    n = len(final)

    def estimate(counts: list[int], share: Callable[[int], float]) -> Estimate:
        return mean_share([share(k) for k in counts])

    worst = estimate(final, lambda k: worst_of(k, draws, _RESUBMISSIONS))
    return StochasticScore(
        draws=draws, votes=_MAJORITY, resubmissions=_RESUBMISSIONS,
        single_shot=estimate(final, lambda k: k / draws),
        majority=estimate(final, lambda k: majority_of(k, draws, _MAJORITY)),
        worst_of_n=worst,
        clean_single_shot=estimate(clean, lambda k: k / draws),
        clean_majority=estimate(clean, lambda k: majority_of(k, draws, _MAJORITY)),
        clean_worst_of_n=estimate(clean, lambda k: worst_of(k, draws, _RESUBMISSIONS)),
        protocols={
            "diffpure": proportion(unhurt, n),
            "lee-kim": proportion(sum(first), n),
            "diffbreak-wc": proportion(sum(k == draws for k in final), n),
            "diffbreak-mv": proportion(sum(2 * k > draws for k in final), n),
        },
    )  # fmt: skip


def _final(example: ExampleRecord, clean: Tensor, broken: Parts, near: Parts) -> Tensor:
    """What the adversary would submit."""
    if example.distance is not None:
        return broken[example.id].to(clean)
    return near[example.id].to(clean) if example.id in near else clean
