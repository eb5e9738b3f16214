"""Accuracy on every corruption and severity: one run folder for each, which goes on and is verified as any other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from robustgen.attacks.baselines import Clean
from robustgen.attacks.plans import Plan
from robustgen.classifier import Classifier
from robustgen.classifiers import load_classifier
from robustgen.corruptions.kinds import CORRUPTIONS, SEVERITIES, check_severity, corruption_of
from robustgen.corruptions.source import PUBLISHED
from robustgen.data import load_data
from robustgen.dataset import Dataset
from robustgen.durable import disk_errors, write_json
from robustgen.errors import ArtifactError, SpecError
from robustgen.jobs import run_job
from robustgen.prepare import default_data, prepare
from robustgen.progress import Progress, Silent
from robustgen.record import RunRecord
from robustgen.request import Request
from robustgen.runs import read_examples
from robustgen.statistics import Estimate, mean_share, proportion
from robustgen.usercode import first_line

__all__ = ["SUMMARY", "CorruptionRequest", "mce", "measure_clean", "measure_corruptions"]

SUMMARY = "corruptions.json"
_CLEAN = Plan("clean", 1, (Clean(),))
_THREAT = "linf:8/255"  # which a run must name, and nothing here uses
_SAME = ("data", "ids", "n", "seed", "types", "severities")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptionRequest:
    """What is to be measured.

    Args:
        classifier: as in `robustgen.evaluate`.
        data: a data set whose images are corrupted here, or "cifar10-c" or "cifar100-c" for the published files; by
            default what the classifier's card names.
        types: kinds, all by default.
        severities: from 1 to 5, all by default.
        n, ids: which examples, as in `robustgen.evaluate`.
        seed: of every random draw.
        baseline: folder of an earlier measurement, by another classifier, to divide errors by.
        weights, data_dir: as in `robustgen.evaluate`.
    """

    classifier: str | Classifier = "fmnist-at"
    data: str | None = None
    types: Sequence[str] = tuple(CORRUPTIONS)
    severities: Sequence[int] = SEVERITIES
    n: int | None = None
    ids: str | None = None
    seed: int = 0
    baseline: Path | None = None
    weights: Path | None = None
    data_dir: Path | None = None

    @property
    def published(self) -> bool:
        """Whether the images are those of published files."""
        return f"{self.data}:" in PUBLISHED

    def source(self, name: str, severity: int) -> str:
        """The name of the data of one cell."""
        if self.published:
            return f"{self.data}:{name}:{severity}"
        return f"corrupted:{name}:{severity}{f':{self.seed}' if self.seed else ''}@{self.data}"

    def checked(self) -> CorruptionRequest:
        """The same with its data named.

        Raises:
            SpecError: an unknown or repeated type or severity, none at all, or corrupted data to be corrupted again.
        """
        types = tuple(corruption_of(name).name for name in self.types)
        severities = tuple(check_severity(severity) for severity in self.severities)
        for what, held in (("types", types), ("severities", severities)):
            if not held or len(set(held)) < len(held):
                given = ", ".join(map(str, held)) or "none"
                raise SpecError(f"--{what} must name one or more, each once, got {given}.")
        data = self.data or default_data(self.classifier)
        if data.startswith(("corrupted:", *PUBLISHED)):
            raise SpecError(f"--data {data} is corrupted already; name the data beneath, or cifar10-c or cifar100-c.")
        return replace(self, data=data, types=types, severities=severities)


def measure_corruptions(
    request: CorruptionRequest, *, out: Path | None = None, device: str = "auto", batch_size: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path]:  # fmt: skip
    """Measure every cell, go on where an earlier call stopped, and write OUT/corruptions.json.

    Each cell is a run folder OUT/TYPE-SEVERITY of its own, clean images (which published files have not) one more.

    Args:
        request: what to measure.
        out: folder; by default runs/corruptions-<data>-<classifier>.
        device, batch_size, progress: as in `robustgen.evaluate`.

    Returns:
        What the file holds: accuracies with 95 % intervals as fractions of 1, `mean` over all cells, whose interval
        takes an example's share of right cells as one number, and `mce` against the baseline, or None. And the folder.

    Raises:
        SpecError, ArtifactError, RecordError: the request is wrong, or data, weights or baseline cannot be used.
    """
    request = request.checked()
    first = _dataset(request, request.types[0], request.severities[0])
    classifier = load_classifier(request.classifier, weights=request.weights, shape=first.shape)
    base = None if request.baseline is None else _read(request.baseline)
    folder = out or Path("runs") / f"corruptions-{_slug(str(request.data))}-{_slug(classifier.card.name)}"
    progress = progress or Silent()
    cells = [("clean", 0)] * (not request.published)
    cells += [(name, severity) for name in request.types for severity in request.severities]
    records, right = {}, {}
    progress.start("corruptions", len(cells))
    for done, (name, severity) in enumerate(cells, 1):
        data = str(request.data) if name == "clean" else request.source(name, severity)
        place = folder / (name if name == "clean" else f"{name}-{severity}")
        record = measure_clean(
            classifier, data, n=request.n, ids=request.ids, seed=request.seed, data_dir=request.data_dir, out=place,
            device=device, batch_size=batch_size,
        )  # fmt: skip
        records[name, severity] = record
        right[name, severity] = [example.robust for example in read_examples(place)]
        progress.advance(done, f"{name} {severity or ''}: {100 * record.clean_accuracy.value:.1f} %")
    summary = _summary(request, classifier, records, right)
    if base is not None:
        summary["mce"], summary["baseline"] = mce(summary, base), base["classifier"]
    with disk_errors(folder):
        write_json(folder / SUMMARY, summary)
    return summary, folder


def measure_clean(
    classifier: Classifier, data: str, *, out: Path, n: int | None = None, ids: str | None = None, seed: int = 0,
    data_dir: Path | None = None, device: str = "auto", batch_size: int | None = None,
    progress: Progress | None = None,
) -> RunRecord:  # fmt: skip
    """A run in float32 that only asks about the images themselves; arguments as in `robustgen.evaluate`."""
    asked = Request(
        classifier=classifier, data=data, threat=_THREAT, plan=_CLEAN, n=n, ids=ids, seed=seed, precision="float32",
        data_dir=data_dir,
    )  # fmt: skip
    job = prepare(asked, device=device, batch_size=batch_size, out=out)
    return run_job(job, progress or Silent())


def _dataset(request: CorruptionRequest, name: str, severity: int) -> Dataset:
    """Of one cell, which is refused here where it cannot be had."""
    return load_data(request.source(name, severity), data_dir=request.data_dir)


def _summary(
    request: CorruptionRequest, classifier: Classifier, records: Mapping[tuple[str, int], RunRecord],
    right: Mapping[tuple[str, int], list[bool]],
) -> dict[str, Any]:  # fmt: skip
    """What the file holds."""
    cells = [key for key in records if key[0] != "clean"]
    per_example = [sum(column) / len(cells) for column in zip(*(right[key] for key in cells), strict=True)]
    one, clean = records[cells[0]], records.get(("clean", 0))
    return {
        "schema": 1,
        "classifier": classifier.card.name,
        "weights_sha256": classifier.weights_sha256,
        "data": request.data,
        "ids": one.spec["ids"],
        "n": one.n,
        "seed": request.seed,
        "types": list(request.types),
        "severities": list(request.severities),
        "clean": None if clean is None else asdict(clean.clean_accuracy),
        "cells": [
            {"type": name, "severity": severity, "identity": records[name, severity].identity,
             "accuracy": asdict(proportion(sum(right[name, severity]), one.n))}
            for name, severity in cells
        ],
        "mean": asdict(mean_share(per_example)),
        "mce": None,
        "baseline": None,
    }  # fmt: skip


def mce(summary: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    """Mean corruption error in percent: of each type the sum of errors over that of the baseline; then the mean.

    Source: Hendrycks & Dietterich 2019, arXiv:1903.12261, section 4.2.

    Args:
        summary, base: what `measure_corruptions` writes, of the same examples, types, severities and seed.

    Raises:
        SpecError: they are not of the same, or the baseline makes no error on a type.
    """
    for key in _SAME:
        if summary[key] != base.get(key):
            raise SpecError(
                f"--baseline: {base.get('classifier')} was measured with {key} {base.get(key)}, this is with "
                f"{summary[key]}; measure it again with the same."
            )
    ratios = []
    for name in summary["types"]:
        mine, theirs = (_errors(table, name) for table in (summary, base))
        if theirs == 0:
            raise SpecError(f"--baseline: {base['classifier']} makes no error on {name}: nothing to divide by.")
        ratios.append(mine / theirs)
    return 100 * sum(ratios) / len(ratios)


def _errors(table: Mapping[str, Any], name: str) -> float:
    errors: float = sum(1 - cell["accuracy"]["value"] for cell in table["cells"] if cell["type"] == name)
    return errors


def _read(path: Path) -> dict[str, Any]:
    """An earlier summary."""
    file = path / SUMMARY if path.is_dir() else path
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"--baseline: {file} cannot be read: {first_line(error)}.") from None
    if not isinstance(table, dict) or table.get("schema") != 1 or "cells" not in table:
        raise ArtifactError(f"--baseline: {file} is not what `robustgen corruptions` writes.")
    for cell in table["cells"]:
        Estimate(**cell["accuracy"])
    return table


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name.rpartition("/")[2]).strip("-") or "user"
