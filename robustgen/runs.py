"""A finished run, opened again with its data and its classifier: what pictures and checks start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustgen.cards import bundled_cards
from robustgen.classifier import Classifier
from robustgen.classifiers import load_classifier
from robustgen.data import load_data, parse_ids
from robustgen.dataset import Dataset
from robustgen.defended import split_name
from robustgen.errors import ArtifactError, RecordError, SpecError
from robustgen.example import ExampleRecord
from robustgen.nets import TORCHVISION
from robustgen.record import RunRecord
from robustgen.robustbench_zoo import ROBUSTBENCH
from robustgen.threat import ThreatModel

__all__ = [
    "OpenedRun", "check_weights", "load_named_classifier", "load_run_classifier", "load_run_data", "open_run",
    "read_examples", "refuse_distances", "refuse_goal",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRun:
    """A finished run with its data; `ids` in the order of the run, `threats` more than one for a union."""

    folder: Path
    record: RunRecord
    examples: dict[int, ExampleRecord]
    ids: tuple[int, ...]
    dataset: Dataset
    threats: tuple[ThreatModel, ...]

    @property
    def threat(self) -> ThreatModel:
        """The threat model of a run that has one."""
        return self.threats[0]


def read_examples(run: Path) -> list[ExampleRecord]:
    """The lines of RUN/examples.jsonl, in their order.

    Raises:
        RecordError: no such file, or a line that cannot be read; its number is named.
    """
    path = run / "examples.jsonl"
    _refuse_parts(run)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from None
    examples = []
    for number, line in enumerate(lines, 1):
        try:
            examples.append(ExampleRecord.from_line(line))
        except (ValueError, TypeError) as error:
            raise RecordError(f"{path}, line {number}, cannot be read: {error}.") from None
    return examples


def load_run_data(
    folder: Path, spec: Mapping[str, Any], data_dir: Path | None
) -> tuple[Dataset, tuple[int, ...]]:  # fmt: skip
    """The data of a run and the ids of its examples.

    Args:
        folder: of the run.
        spec: the fields of its spec.json.
        data_dir: where full data sets lie.

    Raises:
        SpecError: it was made from tensors, which nobody can load again.
        ArtifactError: the data is missing, or no longer what it was.
    """
    name: str = spec["data"]
    if name == "tensors":
        raise SpecError(
            f"{folder} was made from tensors in memory, which cannot be loaded again; save the images with "
            "np.savez(FILE, image=..., label=...) and evaluate --data npz:FILE instead."
        )
    dataset = load_data(name, data_dir=data_dir)
    ids = parse_ids(spec["ids"], None, len(dataset), name)
    if dataset.digest(ids) != spec["data_sha256"]:
        raise ArtifactError(
            f"{name} is no longer the data of {folder}: its hash differs; restore it, or evaluate again."
        )
    return dataset, tuple(ids)


def open_run(folder: Path, data_dir: Path | None) -> OpenedRun:
    """A finished run with its data.

    Raises:
        SpecError, ArtifactError, RecordError: no finished run, or its data cannot be had.
    """
    record = RunRecord.load(folder)
    by_id = {example.id: example for example in read_examples(folder)}
    dataset, ids = load_run_data(folder, record.spec, data_dir)
    if any(id_ not in by_id for id_ in ids):
        raise RecordError(f"{folder / 'examples.jsonl'} lacks examples of the run; evaluate again into another folder.")
    return OpenedRun(
        folder=folder, record=record, examples=by_id, ids=ids, dataset=dataset,
        threats=ThreatModel.parse_all(record.spec["threat"], bare=True),
    )  # fmt: skip


def load_run_classifier(
    folder: Path, spec: Mapping[str, Any], shape: tuple[int, int, int], *, given: str | None, weights: Path | None,
    command: str,
) -> Classifier:  # fmt: skip
    """The classifier of a run: by the name in the record, or as given; always with the run's own weights.

    Args:
        folder: of the run.
        spec: the fields of its spec.json.
        shape: (C, H, W) of its images.
        given: what to load instead of the name in the record.
        weights: file of weights.
        command: how the user would type it again, for messages.

    Raises:
        SpecError, ArtifactError: it cannot be had, or has other weights.
    """
    classifier = load_named_classifier(spec["classifier"], shape, given=given, weights=weights, command=command)
    check_weights(folder, given or classifier.card.name, classifier.weights_sha256, spec["weights_sha256"])
    return classifier


def load_named_classifier(
    name: str, shape: tuple[int, int, int], *, given: str | None, weights: Path | None, command: str
) -> Classifier:  # fmt: skip
    """The classifier that a record calls by a name, or the one that is given; its weights are not looked at.

    Raises:
        SpecError, ArtifactError: it cannot be had.
    """
    stem = name.partition("+")[0] if weights is not None else name  # NAME+FILE is what NAME with --weights is called
    inner = (split_name(stem) or ("", stem))[1]
    if given is None and inner not in bundled_cards() and not inner.startswith((TORCHVISION, ROBUSTBENCH)):
        way = "--classifier fmnist-at --weights FILE" if "+" in name else "--classifier python:FILE.py:FUNCTION"
        raise SpecError(
            f"the record calls its classifier '{name}', and nothing of that name can be loaded; say where it comes "
            f"from, as in: {command} {way}"
        )
    return load_classifier(given or stem, weights=weights, shape=shape)


def check_weights(folder: Path, name: str, found: str, recorded: str) -> None:
    """Refuse weights that are not those of a run.

    Args:
        folder: of the run.
        name: of what was loaded.
        found: sha256 of its weights.
        recorded: sha256 in the record.

    Raises:
        ArtifactError: they differ.
    """
    if found != recorded:
        raise ArtifactError(
            f"{name} has weights {found[:12]}, {folder} was made with {recorded[:12]}; pass the right ones with "
            "--classifier or --weights FILE."
        )


def _refuse_parts(run: Path) -> None:
    """For a reader of examples.jsonl.

    Raises:
        RecordError: the run holds one run a target instead.
    """
    parts = sorted(run.glob("target-*"))
    if parts:
        raise RecordError(f"{run} holds a run for each target class (--goal all); name one of them: {parts[0]}")


def refuse_distances(run: Path, record: RunRecord, command: str) -> None:
    """For a command that needs verdicts inside an eps.

    Raises:
        SpecError: the run holds distances.
    """
    if record.nearest is not None:
        raise SpecError(
            f"{run} holds distances and no verdicts inside an eps, which robustgen {command} needs; type robustgen "
            f"plot {run}, or evaluate again without --report distance."
        )


def refuse_goal(run: Path, record: RunRecord, command: str) -> None:
    """For a command that needs verdicts of an untargeted attack.

    Raises:
        SpecError: the run has a goal.
    """
    if record.targets is not None:
        raise SpecError(
            f"{run} was made with --goal {record.spec['goal']}, and robustgen {command} needs verdicts of any wrong "
            f"class; evaluate again without --goal, or type robustgen plot {run}."
        )
