"""From what a user types to a certification: everything is loaded and checked before the first draw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen.cards import Card, bundled_cards
from robustgen.certify.design import check_design
from robustgen.certify.folder import slug
from robustgen.certify.record import CertificationSpec
from robustgen.certify.report import parse_radii
from robustgen.certify.run import recorded_precision, run_certification
from robustgen.certify.smoothed import base_sha256, check_base, smoothing_base
from robustgen.classifier import Classifier, check_classifier
from robustgen.classifiers import load_classifier
from robustgen.data import load_data, parse_ids
from robustgen.dataset import Dataset
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.generator.load import Generator, load_generator
from robustgen.precision import choose_form, parse_form
from robustgen.progress import Progress
from robustgen.ranks import Ranks
from robustgen.spec import compact_ids

__all__ = [
    "CertificationJob", "CertificationRequest", "certify_request", "default_classifier", "prepare_certification",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CertificationRequest:
    """What `robustgen certify` was asked for, as typed; see its help for the meaning of each field."""

    classifier: str | None  # None: see `default_classifier`
    sigma: float
    denoise: str | None = None
    noise: str = "normal"
    method: str = "anytime"
    profile: str = "exact"
    radii: str = "0,0.25,0.5,0.75,1"
    samples: int = 100_000
    selection: int = 100
    alpha: float = 0.001
    data: str = "fmnist-test-1k"
    n: int | None = None
    ids: str | None = None
    seed: int = 0
    precision: str = "auto"
    weights: Path | None = None
    data_dir: Path | None = None


@dataclass(frozen=True, kw_only=True)
class CertificationJob:
    """A request that has been checked and can run: `base` is the function that is certified, of so many `classes`."""

    spec: CertificationSpec
    base: nn.Module
    card: Card
    dataset: Dataset
    folder: Path
    classes: int
    device: torch.device


def certify_request(
    request: CertificationRequest, *, out: Path | None, batch_size: int, device: str, progress: Progress,
    ranks: Ranks = Ranks(),  # noqa: B008 -- frozen
) -> dict[str, Any]:  # fmt: skip
    """Certify what was asked; returns the record, with `seconds` of this call.

    Raises:
        SpecError, ArtifactError, RecordError: it cannot be done as asked; nothing has been drawn.
    """
    if batch_size < 1:
        raise SpecError(f"--batch-size must be >= 1, got {batch_size}.")
    job = prepare_certification(request, out=out, device=device, ranks=ranks)
    return run_certification(
        job.spec, job.base, job.dataset, job.folder, classes=job.classes, batch_size=batch_size, device=job.device,
        progress=progress, ranks=ranks,
    )  # fmt: skip


def prepare_certification(
    request: CertificationRequest, *, out: Path | None, device: str, ranks: Ranks = Ranks(),  # noqa: B008 -- frozen
) -> CertificationJob:  # fmt: skip
    """Load and check everything that a certification needs.

    Raises:
        SpecError, ArtifactError: it cannot be done as asked; nothing has been written.
    """
    if request.selection < 1:
        raise SpecError(f"--selection must be >= 1, got {request.selection}.")
    where, radii = pick_device(device), parse_radii(request.radii)
    asked_for = request.classifier or default_classifier(request.sigma, request.denoise)
    _outline(request, radii)
    check_design(request.method, samples=request.samples, alpha=request.alpha, profile=request.profile)
    dataset = load_data(request.data, data_dir=request.data_dir)
    ids = parse_ids(request.ids, request.n, len(dataset), dataset.name)
    classifier = load_classifier(asked_for, weights=request.weights, shape=dataset.shape).to(where)
    generator = None if request.denoise is None else load_generator(request.denoise, device=where, precision="float32")
    if generator is not None and generator.denoiser.shape != dataset.shape:
        theirs = generator.denoiser.shape
        raise SpecError(f"{request.denoise} makes images {theirs}, {dataset.name} has {dataset.shape}.")
    x, y = (part.to(where) for part in dataset.batch(ids[:64]))
    check_classifier(classifier, x, y)
    check_base(classifier, x)
    spec = _spec(request, radii, dataset, ids, classifier, generator)
    stem = f"certify-{dataset.name.replace(':', '-')}-{slug(spec.classifier)}"
    asked = request.precision
    if asked == "auto":
        folders = sorted(Path("runs").glob(f"{stem}-*")) if out is None else [out]
        asked = next((held for folder in folders if (held := recorded_precision(folder, spec))), asked)
    chosen = str(choose_form(classifier, x, y, asked)[0].form) if ranks.first else ""
    form = parse_form(ranks.from_first(chosen))
    base = smoothing_base(classifier, generator, request.sigma, form)
    spec = replace(spec, precision=str(form))
    folder = out or Path("runs") / f"{stem}-{spec.identity()[:8]}"
    return CertificationJob(
        spec=spec, base=base, card=classifier.card, dataset=dataset, folder=folder, classes=_classes(base, x),
        device=where,
    )  # fmt: skip


def default_classifier(sigma: float, denoise: str | None) -> str:
    """The bundled classifier for a sigma; a plain one behind a denoiser.

    Raises:
        SpecError: none was trained for that sigma.
    """
    if denoise is not None:
        return "fmnist-standard"
    made_for = {card.sigma: card.name for card in map(Card.load, bundled_cards().values()) if card.sigma is not None}
    if sigma not in made_for:
        known = ", ".join(f"{held:g}" for held in sorted(made_for)) or "none"
        raise SpecError(
            f"no bundled classifier was trained for --sigma {sigma:g} (there is one for: {known}); name a classifier, "
            "or put a denoiser in front: --denoise fmnist-edm."
        )
    return made_for[sigma]


def _outline(request: CertificationRequest, radii: tuple[float, ...]) -> CertificationSpec:
    """The specification without what has to be loaded for it."""
    spec = CertificationSpec(
        classifier="", weights_sha256="", data=request.data, data_sha256="", ids="",
        noise=request.noise, sigma=request.sigma, bits=8, method=request.method, profile=request.profile, radii=radii,
        samples=request.samples, selection=request.selection, alpha=request.alpha, seed=request.seed, precision="",
    )  # fmt: skip
    spec.grid_noise()
    return spec


def _spec(
    request: CertificationRequest, radii: tuple[float, ...], dataset: Dataset, ids: list[int], classifier: Classifier,
    generator: Generator | None,
) -> CertificationSpec:  # fmt: skip
    name = classifier.card.name if generator is None else f"{generator.name}|{classifier.card.name}"
    return replace(
        _outline(request, radii), classifier=name, weights_sha256=base_sha256(classifier, generator), data=dataset.name,
        data_sha256=dataset.digest(ids), ids=compact_ids(ids),
    )  # fmt: skip


def _classes(base: nn.Module, x: torch.Tensor) -> int:
    with torch.no_grad():
        return int(base(x[:1]).shape[1])
