"""From a finished run to an entry of the board: checked from its witnesses, then one card and its record."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robustgen import durable
from robustgen.cards import Card
from robustgen.certify.certify import ABSTAIN
from robustgen.certify.record import holds_certification, load_certification
from robustgen.certify.request import CertificationRequest, prepare_certification
from robustgen.durable import disk_errors
from robustgen.errors import RecordError, SpecError
from robustgen.fields import FILE_NAME, check_value
from robustgen.leaderboard.certified import CertifiedCard, Share, certification_command, certification_request
from robustgen.leaderboard.entries import Claimed, Cost, Entry, EntryCard, command_of, request_of
from robustgen.leaderboard.parts import Origin
from robustgen.leaderboard.pictures import Picture, pack_pixels
from robustgen.prepare import prepare
from robustgen.record import RunRecord
from robustgen.request import Request
from robustgen.runs import open_run, read_examples, refuse_distances, refuse_goal
from robustgen.spec import RunSpec, compact_ids, expand_ids
from robustgen.statistics import Estimate
from robustgen.verify import verify_run
from robustgen.witnesses import read_witnesses

__all__ = ["Means", "add_run", "entry_of_run", "file_entry", "request_here", "verified_entry"]

_SHOWN = 6  # broken examples whose images a card keeps
_WIDEST = 64  # pixels along a side of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What it takes to look at a run here.

    Attributes:
        data_dir: where full data sets lie.
        device: as in `evaluate`.
        classifier: what to load instead of the name in the record, or None; without a purifier in front.
        weights: file of weights, or None.
        origin: what the card says of these two.
    """

    data_dir: Path | None = None
    device: str = "auto"
    classifier: str | None = None
    weights: Path | None = None
    origin: Origin | None = None

    def instead(self, name: str) -> str | None:
        """What stands for a classifier of this name, behind the same purifier; None for the name itself."""
        before, at, _ = name.rpartition("@")
        return None if self.classifier is None else f"{before}{at}{self.classifier}"


def add_run(
    run: Path, folder: Path, *, name: str | None = None, claimed: Claimed | None = None, data_dir: Path | None = None,
    device: str = "auto",
) -> Path:  # fmt: skip
    """Check a run and file it under a name; the path of its card.

    Args:
        run: a folder that `robustgen eval` or `robustgen certify` left.
        folder: of the entries, made where it is missing.
        name: of the card; None for data, classifier and the first letters of the identity.
        claimed: what was said of the classifier before; None for what its own card says, if it says anything.
        data_dir: where full data sets lie.
        device: as in `evaluate`.

    Raises:
        SpecError, RecordError, ArtifactError: no finished run with an eps, one that does not hold, that its own
            record cannot make again, or that is filed already.
    """
    means = Means(data_dir=data_dir, device=device)
    return file_entry(verified_entry(run, means, name=name, claimed=claimed), folder)


def file_entry(entry: Entry, folder: Path) -> Path:
    """Write a card and its record; the path of the card.

    Raises:
        SpecError: a card of that name is there.
    """
    entry.check()
    path = folder / f"{entry.card.name}.json"
    if path.exists():
        raise SpecError(f"{path} is there already; remove it, or give the new card another --name.")
    with disk_errors(folder):
        (folder / "records").mkdir(parents=True, exist_ok=True)
        durable.replace(folder / "records" / path.name, entry.content)
        durable.write_json(path, entry.card.to_json())
    return path


def verified_entry(run: Path, means: Means, *, name: str | None = None, claimed: Claimed | None = None) -> Entry:
    """The entry of a run that holds; nothing is written."""
    if name is not None:
        check_value("--name", name, FILE_NAME)
    given = means.classifier
    if not holds_certification(run):
        record = RunRecord.load(run)
        refuse_distances(run, record, "leaderboard add")
        refuse_goal(run, record, "leaderboard add")
        given = means.instead(record.spec["classifier"])
    elif claimed is not None:
        raise SpecError(f"--claimed is of robust accuracy, and {run} is a certification; drop it.")
    found = verify_run(
        run, classifier=given, weights=means.weights, data_dir=means.data_dir, device=means.device
    )  # fmt: skip
    if not found.holds:
        raise RecordError(f"{run} does not hold: {found.wrong[0]} See robustgen verify {run}.")
    return entry_of_run(run, means, name=name, claimed=claimed)


def entry_of_run(run: Path, means: Means, *, name: str | None = None, claimed: Claimed | None = None) -> Entry:
    """The entry of a run that was verified; nothing is written.

    Raises:
        SpecError: the request in its record leads to another run, or nowhere.
    """
    content = (run / "record.json").read_bytes()
    shared: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(), "record_sha256": hashlib.sha256(content).hexdigest(),
        "origin": means.origin,
    }  # fmt: skip
    if holds_certification(run):
        return Entry(_certified(run, means, name, shared), json.loads(content), content)
    record, path = RunRecord.load(run), run / "spec.json"
    spec = RunSpec.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
    classifier = _remade(run, spec, means)
    examples = read_examples(run)
    card = EntryCard(
        name=name or _name(spec),
        **_of_classifier(classifier),
        **shared,
        spec=spec,
        identity=record.identity,
        n=record.n,
        clean_accuracy=record.clean_accuracy,
        robust_accuracy=record.robust_accuracy,
        right=compact_ids(sorted(e.id for e in examples if e.clean_prediction == e.label)),
        robust=compact_ids(sorted(e.id for e in examples if e.robust)),
        flags=record.flags,
        notes=record.notes,
        environment=record.environment,
        cost=Cost(forwards=record.forwards, backwards=record.backwards, seconds=record.seconds),
        command=command_of(spec, means.origin),
        claimed=claimed or _claim_of(classifier, spec),
        pictures=_pictures(run, means.data_dir),
    )
    return Entry(card, json.loads(content), content)


def _certified(run: Path, means: Means, name: str | None, shared: dict[str, Any]) -> CertifiedCard:
    """The card of a certification."""
    held = load_certification(run)
    spec, record = held.spec, held.record
    job = prepare_certification(
        CertificationRequest(**request_here(certification_request(spec, means.origin), means)), out=None,
        device=means.device,
    )  # fmt: skip
    _refuse_another(run, job.spec, spec, means)
    found = {one.id: one for one in held.certificates}
    in_order = [found[id_] for id_ in expand_ids(spec.ids)]
    seconds = [one.seconds for one in in_order if one.seconds is not None]
    return CertifiedCard(
        name=name or f"certified-{_name(spec)}",
        **_of_classifier(job.card),
        **shared,
        spec=spec,
        identity=spec.identity(),
        n=record["n"],
        radii=tuple(one.radius if one.predict == one.label else None for one in in_order),
        abstains=compact_ids(sorted(one.id for one in in_order if one.predict == ABSTAIN)),
        certified=tuple(Share(**share) for share in record["certified"]),
        acr=record["acr"],
        abstained=Estimate(**record["abstained"]),
        shape=held.shape,
        samples=record["samples"],
        seconds=round(math.fsum(seconds), 3) if len(seconds) == len(in_order) else None,
        environment=record["environment"],
        command=certification_command(spec, means.origin),
    )


def request_here(asked: dict[str, Any], means: Means) -> dict[str, Any]:
    """A request of a card with the classifier, the weights and the data that are at hand."""
    given = {} if means.classifier is None else {"classifier": means.instead(asked["classifier"])}
    weights = {} if means.weights is None else {"weights": means.weights}
    return {**asked, **given, **weights, "data_dir": means.data_dir}


def _of_classifier(classifier: Card) -> dict[str, Any]:
    return {
        "title": classifier.title, "architecture": classifier.architecture,
        "licence": classifier.licence or "not stated", "source": classifier.source or "not stated",
    }  # fmt: skip


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


def _remade(run: Path, spec: RunSpec, means: Means) -> Card:
    """The classifier's card, after the request in the record has led to the same specification again."""
    try:
        job = prepare(Request(**request_here(request_of(spec, means.origin), means)), device=means.device)
    except SpecError as error:
        raise SpecError(f"{run} cannot be run again from its record alone, which an entry must: {error}") from None
    _refuse_another(run, job.spec, spec, means)
    return job.classifier.card


def _refuse_another(run: Path, found: Any, spec: Any, means: Means) -> None:
    """Refuse a command that leads to another run; a classifier that is given may be called otherwise."""
    if means.classifier is not None or means.weights is not None:
        found = replace(found, classifier=spec.classifier)
    differing = found.differences(spec)
    if differing:
        raise SpecError(f"{run}: its own command leads to another run; {differing[0][:120]}.")


def _name(spec: Any) -> str:
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{spec.data}-{spec.classifier}").strip("-.")[:80]
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
