"""How a randomised classifier is scored: on the images that the run ended with, with fresh noise.

During an attack one lucky draw can misclassify an image that is classified correctly nine times in ten. Counting it as
broken, as AutoAttack's `rand` does, understates the classifier; judging by one draw alone hides what an adversary gains
who submits an image again and again. So three figures are given, and that of `rand` beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustgen.journal import Journal
from robustgen.judge import Judge
from robustgen.prepare import Job
from robustgen.record import ExampleRecord, StochasticScore
from robustgen.statistics import proportion
from robustgen.witnesses import Parts

__all__ = ["VOTES", "score_stochastic"]

VOTES = 21  # draws of a randomised classifier whose majority is its prediction
_RESUBMISSIONS = 10


def score_stochastic(job: Job, examples: Sequence[ExampleRecord], journal: Journal) -> StochasticScore:
    """Fresh passes over the witness of each broken example, the nearest point of each other, the clean image else."""
    broken, near = journal.parts(), journal.parts("near")
    judge = Judge(job.classifier, job.threats[0])
    single = majority = worst = unhurt = 0
    for at in range(0, len(examples), job.batch_size):
        batch = examples[at : at + job.batch_size]
        x, y = (part.to(job.device) for part in job.dataset.batch([e.id for e in batch]))
        final = torch.stack([_final(e, image, broken, near) for e, image in zip(batch, x, strict=True)])
        clean_right = judge.predict(x) == y
        right = torch.stack([judge.predict(final) == y for _ in range(VOTES)])
        lost = torch.tensor([e.missed or not e.robust for e in batch], device=y.device)
        single += int(right[0].sum())
        majority += int((2 * right.sum(0) > VOTES).sum())
        worst += int(right[:_RESUBMISSIONS].all(0).sum())
        unhurt += int((clean_right & ~lost).sum())
    n = len(examples)
    return StochasticScore(
        draws=VOTES, resubmissions=_RESUBMISSIONS, single_shot=proportion(single, n), majority=proportion(majority, n),
        worst_of_n=proportion(worst, n), one_miss=proportion(unhurt, n),
    )  # fmt: skip


def _final(example: ExampleRecord, clean: Tensor, broken: Parts, near: Parts) -> Tensor:
    """What the adversary would submit."""
    if example.distance is not None:
        return broken[example.id].to(clean)
    return near[example.id].to(clean) if example.id in near else clean
