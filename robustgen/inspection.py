"""Health checks of a job, on its first examples, before anything is attacked; none where a server answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from robustgen.defended import has_generator
from robustgen.health import Health, inspect_classifier
from robustgen.prepare import Job
from robustgen.progress import Progress

__all__ = ["inspect_job"]

_ROWS = (16, 64)  # at least and at most; an eighth of the examples in between, so that the cost stays small
_ROWS_BEHIND_A_GENERATOR = (8, 8)  # where a pass costs tens of evaluations


def inspect_job(job: Job, fetch: Callable[[Sequence[int]], tuple[Tensor, Tensor]], progress: Progress) -> Health:
    """What the checks measured, and the flags that follow from that and from how the job attacks."""
    if job.remote:  # each pass would be paid for, and gradients, which most checks are about, there are none
        progress.note(f"no health checks: {job.classifier.card.name} is a server.")
        return Health(flags=tuple(sorted(job.flags)))
    least, most = _ROWS_BEHIND_A_GENERATOR if has_generator(job.classifier) else _ROWS
    rows = min(len(job.ids), max(least, min(most, len(job.ids) // 8)))
    progress.start("health", rows)
    found = inspect_classifier(job.classifier, *fetch(job.ids[:rows]), job.threats[0], seed=job.spec.seed)
    flags = tuple(sorted({*found.flags, *job.flags}))
    progress.advance(rows, f"flags: {', '.join(flags) or 'none'}")
    return replace(found, flags=flags)
