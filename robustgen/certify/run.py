"""A certification with its folder: what was asked, one line a certificate, totals; killed, it goes on.

spec.json            all that changes a figure; its sha256 is the identity
certificates.jsonl   one line an example, appended and flushed as it is finished
record.json          totals, written last
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustgen import durable
from robustgen.certify.certify import Certificate, certify
from robustgen.certify.folder import check_same, claim, read_object, whole_lines
from robustgen.certify.record import JOURNAL, CertificationSpec, as_log, read_certificates, read_spec, summarise
from robustgen.certify.votes import Voter
from robustgen.dataset import Dataset
from robustgen.environment import describe_environment
from robustgen.errors import RecordError
from robustgen.progress import Progress
from robustgen.ranks import Ranks
from robustgen.spec import expand_ids

__all__ = ["CertificationSpec", "as_log", "read_certificates", "recorded_precision", "run_certification"]


def recorded_precision(folder: Path, spec: CertificationSpec) -> str | None:
    """The form that an earlier process chose for this very certification, so that it goes on in it; else None."""
    with suppress(RecordError):
        held = read_spec(folder)
        if replace(spec, precision=held.precision) == held:
            return held.precision
    return None


def run_certification(
    spec: CertificationSpec, base: nn.Module, dataset: Dataset, folder: Path, *, classes: int, batch_size: int,
    device: torch.device, progress: Progress, ranks: Ranks = Ranks(),  # noqa: B008 -- frozen
) -> dict[str, Any]:  # fmt: skip
    """Certify every example of the spec, or go on with what is left; a finished one is only read.

    Args:
        spec: what is asked.
        base: the function that is certified.
        dataset: the images.
        folder: the run folder.
        classes: of the base.
        batch_size: noised images sent at once; changes no figure but by rounding inside the base.
        device: where the base is.
        progress: told how the work goes.
        ranks: the processes that share the examples.

    Raises:
        RecordError: the folder holds another certification; the fields that differ are named.
        SpecError: it is in use, or the base's output is not finite.
    """
    if (folder / "record.json").is_file():
        check_same(folder, spec)
        record = read_object(folder / "record.json")
        if "journal_sha256" in record:  # else of an earlier version: its totals are made anew, from its lines
            progress.note(f"this certification was finished before; its record is read from {folder}.")
            return record
    lock = _open(folder, spec, ranks)
    try:
        _work(spec, base, dataset, folder, classes, batch_size, device, progress, ranks)
        ranks.gather(None)
        if ranks.first:
            return _close(folder, spec, dataset.shape)
    finally:
        if lock is not None:
            lock.release()
    return {}


def _open(folder: Path, spec: CertificationSpec, ranks: Ranks) -> durable.FolderLock | None:
    lock = claim(folder, spec) if ranks.first else None
    ranks.gather(None)
    return lock


def _work(
    spec: CertificationSpec, base: nn.Module, dataset: Dataset, folder: Path, classes: int, batch_size: int,
    device: torch.device, progress: Progress, ranks: Ranks,
) -> None:  # fmt: skip
    # By the first rank, before any rank begins: all must share out the same examples.
    done = set(ranks.from_first([one.id for one in _recover(folder)] if ranks.first else []))
    todo = [id_ for id_ in expand_ids(spec.ids) if id_ not in done][ranks.rank :: ranks.size]
    if done:
        progress.note(f"{len(done)} examples were certified before; going on.")
    progress.start("certify", len(todo))
    file = durable.Appender(folder / (f"certificates-{ranks.rank}.jsonl" if ranks.rank else JOURNAL))
    begun, count, right = time.monotonic(), 0, 0

    def finish(one: Certificate) -> None:
        nonlocal count, right
        file.add(f"{one.line()}\n".encode())
        count, right = count + 1, right + (one.predict == one.label)
        progress.advance(count, f"{right} certified right, {(time.monotonic() - begun) / count:.2f} s each")

    voter = Voter(base, spec.grid_noise(), seed=spec.seed, classes=classes, batch_size=batch_size, device=device)
    with durable.disk_errors(folder):
        design = spec.design(math.prod(dataset.shape))
        certify(voter, _examples(dataset, todo), design, selection=spec.selection, finish=finish)
        file.sync()
    file.close()


def _examples(dataset: Dataset, ids: Sequence[int]) -> Iterator[tuple[int, int, np.ndarray[Any, Any]]]:
    for id_ in ids:
        x, y = dataset.batch([id_])
        yield id_, int(y[0]), x[0].double().numpy()


def _recover(folder: Path) -> list[Certificate]:
    """Every certificate that any process finished, in the order of their ids; a line cut off by a crash is left out.

    Raises:
        RecordError: a whole line that cannot be read.
    """
    found = dict[int, Certificate]()
    for path in sorted(folder.glob("certificates*.jsonl")):
        found |= {one.id: one for one in whole_lines(path, Certificate.from_line)}
    return [found[id_] for id_ in sorted(found)]


def _close(folder: Path, spec: CertificationSpec, shape: tuple[int, ...]) -> dict[str, Any]:
    """Merge what ranks wrote, sort it, and write the totals last."""
    found = _recover(folder)
    with durable.disk_errors(folder):
        durable.replace(folder / JOURNAL, "".join(f"{one.line()}\n" for one in found).encode())
        record = {
            "spec": asdict(spec), "identity": spec.identity(), **summarise(spec, found, shape),
            "environment": describe_environment(), "schema": 1, "run": str(folder),
        }  # fmt: skip
        durable.write_json(folder / "record.json", record)
        for path in folder.glob("certificates-*.jsonl"):
            durable.remove(path)
    return record
