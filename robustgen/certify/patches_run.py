"""A certification against patches with its folder: what was asked, one line an image, totals; killed, it goes on.

spec.json       all that changes a figure; its sha256 is the identity
patches.jsonl   one line an image, appended and flushed as it is finished
record.json     totals, written last

Each image is sent alone, with its masks or ablations, so that neither a batch nor a kill changes an answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from robustgen import durable
from robustgen.certify.folder import check_same, claim, holds_fields, parse_lines, read_object, slug, whole_lines
from robustgen.certify.patches import Defence, PatchRequest, check_patches, make_defence
from robustgen.classifier import Classifier, check_classifier
from robustgen.classifiers import load_classifier
from robustgen.data import load_data, parse_ids
from robustgen.dataset import Dataset
from robustgen.environment import describe_environment, pick_device
from robustgen.errors import RecordError, SpecError
from robustgen.health import is_stochastic
from robustgen.progress import Progress
from robustgen.spec import Spec, compact_ids, expand_ids
from robustgen.statistics import proportion

__all__ = [
    "PatchResult", "PatchSpec", "certify_against_patches", "defence_of", "holds_patches", "load_patch_run",
]  # fmt: skip

_JOURNAL = "patches.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSpec(Spec):
    """A certification against patches; two with the same identity give the same lines.

    Attributes:
        classifier, weights_sha256: what is certified.
        data, data_sha256, ids: the images.
        method, patches: how, and the sides of the patches.
        per_axis: of masks, else None.
        ablation, size, theta, fill: of votes over ablations, else None; the value of ablated pixels as resolved.
        schema: of this file.
    """

    classifier: str
    weights_sha256: str
    data: str
    data_sha256: str
    ids: str
    method: str
    patches: tuple[int, ...]
    per_axis: int | None = None
    ablation: str | None = None
    size: int | None = None
    theta: float | None = None
    fill: float | None = None
    schema: int = 1

    @classmethod
    def kind(cls) -> str:
        """How messages call it."""
        return "certification against patches"


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchResult:
    """What was found for one image.

    Attributes:
        id, label: which.
        predict: class of the whole image, without a defence.
        answers: of the defence, for each side.
        certified: whether no patch of that side makes the defence err.
    """

    id: int
    label: int
    predict: int
    answers: list[int]
    certified: list[bool]

    def line(self) -> str:
        """One line of patches.jsonl, without the newline."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_line(cls, text: str) -> PatchResult:
        """The inverse of `line`.

        Raises:
            ValueError, TypeError: no JSON, or other fields.
        """
        return cls(**json.loads(text))


def certify_against_patches(
    request: PatchRequest, *, out: Path | None, device: str, progress: Progress
) -> dict[str, Any]:  # fmt: skip
    """Certified accuracy against the side of the patch, beside the accuracy of the defended classifier without one.

    Args:
        request: what is asked.
        out: the run folder; None names it after data, classifier and identity.
        device: "auto", "cpu", "cuda" or "mps".
        progress: told how the work goes.

    Returns:
        The record; that of a finished folder is only read.

    Raises:
        SpecError, ArtifactError, RecordError: it cannot be done as asked; nothing has been computed.
    """
    job = _load(request, pick_device(device))
    stem = f"certify-patches-{slug(job.spec.data)}-{slug(job.spec.classifier)}"
    folder = out or Path("runs") / f"{stem}-{job.spec.identity()[:8]}"
    if (folder / "record.json").is_file():
        check_same(folder, job.spec)
        progress.note(f"this certification was finished before; its record is read from {folder}.")
        return read_object(folder / "record.json")
    lock = claim(folder, job.spec)
    try:
        with durable.disk_errors(folder):
            totals = _totals(job, _work(job, folder, progress))
            record = {**totals, "environment": describe_environment(), "run": str(folder)}
            durable.write_json(folder / "record.json", record)
            return record
    finally:
        lock.release()


def holds_patches(folder: Path) -> bool:
    """Whether a run folder is one of `robustgen certify-patches`, finished or not."""
    return holds_fields(folder, "patches")


def load_patch_run(folder: Path) -> tuple[PatchSpec, list[PatchResult]]:
    """A finished certification against patches, as its folder tells it.

    Raises:
        RecordError: it is none, or not finished, or a file of it cannot be read.
    """
    if not (folder / "record.json").is_file():
        raise RecordError(
            f"{folder} is an unfinished certification; the same certify-patches command goes on with it "
            "(no record.json)."
        )
    spec = PatchSpec.from_json(read_object(folder / "spec.json"), str(folder / "spec.json"))
    path = folder / _JOURNAL
    try:
        lines = parse_lines(path.read_text(encoding="utf-8"), path, PatchResult.from_line)
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from None
    odd = [one.id for one in lines if len(one.certified) != len(spec.patches)]
    if odd or [one.id for one in lines] != expand_ids(spec.ids):
        raise RecordError(f"{path} does not hold a line for each example of the run, with an entry for each side.")
    return spec, lines


def defence_of(spec: PatchSpec, shape: tuple[int, int, int]) -> Defence:
    """The defence that was certified, for images (C, H, W)."""
    kept = {key: getattr(spec, key) for key in ("per_axis", "size", "theta", "fill")}
    asked: dict[str, Any] = {key: value for key, value in kept.items() if value is not None}
    if spec.ablation in ("columns", "rows"):
        asked["axis"] = spec.ablation
    request = PatchRequest(classifier=spec.classifier, patches=spec.patches, method=spec.method, **asked)
    check_patches(request)
    return make_defence(request, shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A request with everything loaded."""

    spec: PatchSpec
    model: Classifier
    dataset: Dataset
    defence: Defence
    device: torch.device


def _load(request: PatchRequest, device: torch.device) -> _Job:
    """Load and check all that was asked for."""
    check_patches(request)
    dataset = load_data(request.data, data_dir=request.data_dir)
    ids = parse_ids(None, request.n, len(dataset), dataset.name)
    defence = make_defence(request, dataset.shape)
    model = load_classifier(request.classifier, weights=request.weights, shape=dataset.shape).to(device)
    x = dataset.batch(ids[:64])[0].to(device)
    check_classifier(model, x, torch.as_tensor(dataset.labels[ids]))
    if is_stochastic(model, x):
        raise SpecError(f"{model.card.name} answers the same image in two ways; an exact certificate needs one answer.")
    spec = PatchSpec(
        classifier=model.card.name, weights_sha256=model.weights_sha256, data=dataset.name,
        data_sha256=dataset.digest(ids), ids=compact_ids(ids), method=request.method, patches=request.patches,
        **defence.settings(model),
    )  # fmt: skip
    return _Job(spec=spec, model=model, dataset=dataset, defence=defence, device=device)


def _work(job: _Job, folder: Path, progress: Progress) -> list[PatchResult]:
    """Results of all images, in their order: read where they are there, else made and appended."""
    path, ids = folder / _JOURNAL, expand_ids(job.spec.ids)
    done = {one.id: one for one in whole_lines(path, PatchResult.from_line)}
    todo = [id_ for id_ in ids if id_ not in done]
    if len(todo) < len(ids):
        progress.note(f"{len(ids) - len(todo)} images were certified before; going on.")
    progress.start("certify", len(todo))
    file, begun, held = durable.Appender(path), time.monotonic(), [0] * len(job.spec.patches)
    for count, id_ in enumerate(todo, 1):
        done[id_] = one = _certify(job, id_)
        file.add(f"{one.line()}\n".encode())
        held = [before + now for before, now in zip(held, one.certified, strict=True)]
        shown = ", ".join(map(str, held))
        progress.advance(count, f"{shown} certified, {(time.monotonic() - begun) / count:.2f} s each")
    file.sync()
    file.close()
    return [done[id_] for id_ in ids]


def _certify(job: _Job, id_: int) -> PatchResult:
    x, y = (part.to(job.device) for part in job.dataset.batch([id_]))
    with torch.no_grad():
        predict = int(job.model(x).argmax(1))
    answers, certified = zip(*job.defence.answers(job.model, x, y), strict=True)
    return PatchResult(id=id_, label=int(y), predict=predict, answers=list(answers), certified=list(certified))


def _totals(job: _Job, found: Sequence[PatchResult]) -> dict[str, Any]:
    """What record.json says of the lines."""
    spec, n, rows = job.spec, len(found), []
    for k, (patch, told) in enumerate(zip(spec.patches, job.defence.rows, strict=True)):
        clean = proportion(sum(one.answers[k] == one.label for one in found), n)
        certified = proportion(sum(one.certified[k] for one in found), n)
        rows.append({"patch": patch, **told, "clean": asdict(clean), "certified": asdict(certified)})
    settings = {key: getattr(spec, key) for key in ("per_axis", "ablation", "size", "theta", "fill")}
    return {
        "classifier": spec.classifier, "method": spec.method,
        **{key: value for key, value in settings.items() if value is not None}, "n": n,
        "clean": asdict(proportion(sum(one.predict == one.label for one in found), n)), "rows": rows,
        "spec": asdict(spec), "identity": spec.identity(), "schema": 1,
    }  # fmt: skip
