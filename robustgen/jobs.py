"""A job run to its end: one evaluation, or with `--goal all` one towards each class."""

from __future__ import annotations

from robustgen.all_targets import run_targets
from robustgen.evaluation import run_once
from robustgen.prepare import Job
from robustgen.progress import Progress
from robustgen.ranks import Ranks
from robustgen.record import RunRecord

__all__ = ["run_job"]


def run_job(job: Job, progress: Progress, ranks: Ranks = Ranks()) -> RunRecord:  # noqa: B008 -- frozen
    """Run a job to its end, or go on with one that was left half-way; a finished one is only read.

    Of several ranks each takes its share of the examples; rank 0 merges what all have written.

    Raises:
        SpecError, RecordError: the run folder is in use for something else.
        KeyboardInterrupt: passed on, after what is finished has been written.
    """
    return run_targets(job, progress, ranks) if job.goal.kind == "all" else run_once(job, progress, ranks)
