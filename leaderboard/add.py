"""From a finished run to an entry of the board: checked from its witnesses, then one card and its record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robustgen.cards import Card
from robustgen.distances import refuse_distances
from robustgen.durable import disk_errors, replace, write_json
from robustgen.errors import RecordError, SpecError
from robustgen.fields import FILE_NAME, check_value
from robustgen.leaderboard.entries import Claimed, Cost, Entry, EntryCard, command_of, request_of
from robustgen.leaderboard.pictures import Picture, pack_pixels
from robustgen.prepare import Request, prepare
from robustgen.record import RunRecord
from robustgen.runs import open_run, read_examples
from robustgen.spec import RunSpec, compact_ids
from robustgen.targets import refuse_goal
from robustgen.verify import verify_run
from robustgen.witnesses import read_witnesses

__all__ = ["add_run", "card_of_run"]

_SHOWN = 6  # broken examples whose images a card keeps
_WIDEST = 64  # pixels along a side of them


def add_run(
    run: Path, folder: Path, *, name: str | None = None, claimed: Claimed | None = None, data_dir: Path | None = None,
    device: str = "auto",
) -> Path:  # fmt: skip
    """Check a run and file it under a name; the path of its card.

    Args:
        run: a folder that `robustgen eval` left.
        folder: of the entries, made where it is missing.
        name: of the card; None for data, classifier and the first letters of the identity.
        claimed: what was said of the classifier before; None for what its own card says, if it says anything.
        data_dir: where full data sets lie.
        device: as in `evaluate`.

    Raises:
        SpecError, RecordError, ArtifactError: no finished run with an eps, one that does not hold, that its own
            record cannot make again, or that is filed already.
    """
    card, record = card_of_run(run, name=name, claimed=claimed, data_dir=data_dir, device=device)
    Entry(card, json.loads(record), record).check()
    path = folder / f"{card.name}.json"
    if path.exists():
        raise SpecError(f"{path} is there already; remove it, or give the new card another --name.")
    with disk_errors(folder):
        (folder / "records").mkdir(parents=True, exist_ok=True)
        replace(folder / "records" / path.name, record)
        write_json(path, card.to_json())
    return path


def card_of_run(
    run: Path, *, name: str | None, claimed: Claimed | None, data_dir: Path | None, device: str
) -> tuple[EntryCard, bytes]:
    """The card of a run and the bytes of its record; nothing is written."""
    if name is not None:
        check_value("--name", name, FILE_NAME)
    record = RunRecord.load(run)
    refuse_distances(run, record, "leaderboard add")
    refuse_goal(run, record, "leaderboard add")
    found = verify_run(run, data_dir=data_dir, device=device)
    if not found.holds:
        raise RecordError(f"{run} does not hold: {found.wrong[0]} See robustgen verify {run}.")
    spec = RunSpec.from_json(json.loads((run / "spec.json").read_text(encoding="utf-8")), str(run / "spec.json"))
    classifier = _remade(run, spec, data_dir, device)
    examples = read_examples(run)
    content = (run / "record.json").read_bytes()
    card = EntryCard(
        name=name or _name(spec),
        title=classifier.title,
        architecture=classifier.architecture,
        licence=classifier.licence or "not stated",
        source=classifier.source or "not stated",
        date=datetime.now(UTC).date().isoformat(),
        spec=spec,
        identity=record.identity,
        record_sha256=hashlib.sha256(content).hexdigest(),
        n=record.n,
        clean_accuracy=record.clean_accuracy,
        robust_accuracy=record.robust_accuracy,
        right=compact_ids(sorted(e.id for e in examples if e.clean_prediction == e.label)),
        robust=compact_ids(sorted(e.id for e in examples if e.robust)),
        flags=record.flags,
        notes=record.notes,
        environment=record.environment,
        cost=Cost(forwards=record.forwards, backwards=record.backwards, seconds=record.seconds),
        command=command_of(spec),
        claimed=claimed or _claim_of(classifier, spec),
        pictures=_pictures(run, data_dir),
    )
    return card, content


def _pictures(run: Path, data_dir: Path | None) -> tuple[Picture, ...]:
    """The first broken examples of a run, where its images are grey or RGB and small enough to show."""
    opened = open_run(run, data_dir)
    channels, height, width = opened.dataset.shape
    broken = [id_ for id_ in sorted(opened.ids) if opened.examples[id_].broken_by not in (None, "clean")][:_SHOWN]
    if channels not in (1, 3) or max(height, width) > _WIDEST or not broken:
        return ()
    witnesses = {id_: image for id_, image in read_witnesses(run) if id_ in broken}
    names = opened.dataset.class_names
    x, _ = opened.dataset.batch(broken)
    return tuple(
        Picture(
            id=id_, label=_class_name(names, opened.examples[id_].label),
            prediction=_class_name(names, opened.examples[id_].prediction), shape=(channels, height, width),
            clean=pack_pixels(image.numpy()), adversarial=pack_pixels(witnesses[id_].numpy()),
        )
        for id_, image in zip(broken, x, strict=True)
    )  # fmt: skip


def _class_name(names: Sequence[str], label: int | None) -> str:
    return str(label) if label is None or label >= len(names) else names[label]


def _remade(run: Path, spec: RunSpec, data_dir: Path | None, device: str) -> Card:
    """The classifier's card, after the request in the record has led to the same specification again."""
    try:
        job = prepare(Request(**request_of(spec), data_dir=data_dir), device=device)
    except SpecError as error:
        raise SpecError(f"{run} cannot be run again from its record alone, which an entry must: {error}") from None
    differing = job.spec.differences(spec)
    if differing:
        raise SpecError(f"{run}: its own command leads to another run; {differing[0][:120]}.")
    return job.classifier.card


def _name(spec: RunSpec) -> str:
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{spec.data}-{spec.classifier}").strip("-.")
    return f"{stem}-{spec.identity()[:8]}"


def _claim_of(classifier: Card, spec: RunSpec) -> Claimed | None:
    """The first figure of the classifier's own card for this data and threat model."""
    for figure in classifier.figures:
        if "robust" in figure["metric"] and figure.get("data") == spec.data and figure.get("threat") == spec.threat:
            return _claimed(figure, classifier.name)
    return None


def _claimed(figure: dict[str, Any], classifier: str) -> Claimed:
    return Claimed(
        value=float(figure["value"]), n=figure["n"], protocol=figure["protocol"], source=f"card of {classifier}"
    )
