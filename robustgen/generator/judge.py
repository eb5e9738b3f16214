"""`robustgen generator judge`: everything that is known to go wrong with generated images, measured beside a floor.

Three rows are compared with the same N training images: the generated images, N other training images, and N test
images. What the generator's row says is to be read against the other two, which are as good as it gets at this N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.dataset import Dataset
from robustgen.errors import SpecError
from robustgen.generator.cas import CasResult, CasSettings, classification_accuracy_score
from robustgen.generator.distances import (
    Measured,
    frechet_infinity,
    frechet_with_error,
    inception_score,
    kernel_distance,
)
from robustgen.generator.features import Extractor, Features
from robustgen.generator.generated import read_generated, read_images
from robustgen.generator.memorisation import (
    Memorisation,
    MemorisationSettings,
    audit_memorisation,
    duplicates,
    save_pairs,
)
from robustgen.generator.neighbours import NeighbourStatistics, neighbour_statistics
from robustgen.progress import Progress, Silent
from robustgen.rng import generator_for
from robustgen.statistics import Estimate, proportion

__all__ = ["CasComparison", "FeatureTable", "JudgeOptions", "Judgement", "Row", "judge", "read_generated"]

NEAR = 0.02  # images whose pixels differ by less, 5 grey levels of 255, are near duplicates
_LEAST = 20  # images a set, below which no figure here means anything


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What to measure.

    Args:
        n: images a set; None for as many as there are generated images, test images and half the training images.
        cas: train a classifier on generated and one on real images; takes minutes.
        cas_settings: their budget.
        memorisation: what counts as extracted.
        near: up to which distance two generated images are near duplicates, in pixels of [0, 1].
        pairs: where to save a PNG of the pairs closest to training images; None for none.
        seed: of every choice of images.
        device: for the training of classifiers; None for the CPU.
    """

    n: int | None = None
    cas: bool = False
    cas_settings: CasSettings = field(default_factory=CasSettings)
    memorisation: MemorisationSettings = field(default_factory=MemorisationSettings)
    near: float = NEAR
    pairs: Path | None = None
    seed: int = 0
    device: torch.device | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.near < 1:
            raise SpecError(f"near must lie in [0, 1), got {self.near:g}.")
        if self.pairs is not None and self.pairs.suffix != ".png":
            raise SpecError(f"the picture of closest pairs must end in .png, got '{self.pairs}'.")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One set of images against the N training images, in the features of one network.

    Attributes:
        name: "generated", "other training images" or "test images".
        fd: Fréchet distance, with its standard error.
        fd_infinity: the same for endless sets; None where there are too few images.
        kd: kernel distance, with its standard error.
        neighbours: precision, recall, density, coverage.
        inception_score: by the same network, with its spread over ten parts.
        agreement: share of images that the network classifies as labelled; None without labels of its classes.
    """

    name: str
    fd: Measured
    fd_infinity: float | None
    kd: Measured
    neighbours: NeighbourStatistics
    inception_score: Measured
    agreement: Estimate | None


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """All rows in the features of one network.

    Attributes:
        names: what fd, kd and inception_score are to be called; "FID" and "KID" for the standard network only.
        rows: the generated images first, then the floors for which there are enough images.
    """

    names: dict[str, str]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class CasComparison:
    """Classification accuracy scores of as many generated and real images, with one budget."""

    generated: CasResult
    real: CasResult


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was measured of N generated images.

    Attributes:
        data: name of the training images.
        n: images in every set.
        n_given: generated images in the file, of which `n` were drawn at random.
        seed: of that.
        tables: one a network.
        memorisation: nearest training images, among all of them.
        exact_duplicates, near_duplicates: how many of the n repeat an earlier one; exact ones count as near, too.
        near_duplicates_real: as many real images for comparison.
        class_counts: generated images of each class among the n; None without labels.
        cas: None if not asked for, or without labels.
        notes: what to know before reading the figures.
    """

    data: str
    n: int
    n_given: int
    seed: int
    tables: tuple[FeatureTable, ...]
    memorisation: Memorisation
    exact_duplicates: int
    near_duplicates: int
    near_duplicates_real: int
    class_counts: tuple[int, ...] | None
    cas: CasComparison | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as dicts, lists, numbers and texts."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        return [
            f"{self.n} generated images against {self.n} training images of {self.data}",
            *(line for table in self.tables for line in _table_lines(table)),
            *_memorisation_lines(self),
            *_label_lines(self),
            *(f"note: {note}" for note in self.notes),
        ]


def judge(
    images: Tensor,
    labels: Tensor | None,
    train: Dataset,
    test: Dataset,
    extractors: Sequence[Extractor],
    options: JudgeOptions | None = None,
    progress: Progress | None = None,
) -> Judgement:
    """Measure generated images against training and test images; every set has the same N.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) int64, or None where the generator knows no classes.
        train: what the generator was trained on.
        test: images of the same kind that it never saw.
        extractors: networks in whose features to compare; see `robustgen.generator.features`.
        options: what to measure.
        progress: told about each stage.

    Raises:
        SpecError: images, labels and data do not fit one another, or there are too few images.
    """
    options, progress = options or JudgeOptions(), progress or Silent()
    n, notes = _check(images, labels, train, test, options)
    sets = _draw_sets(images, labels, train, test, n, options.seed)
    fake = sets.rows[0]
    tables = tuple(_table(extractor, sets, options.seed, progress) for extractor in extractors)
    memorisation = audit_memorisation(fake.images, sets.training, sets.held_out, options.memorisation, progress)
    if memorisation.ratio is None:
        notes.append(
            "test images are training images, too: neither the ratio nor the row of test images means anything."
        )
    if options.pairs is not None:
        save_pairs(fake.images, sets.training, memorisation.pairs, options.pairs)
    exact = len(duplicates(fake.images))
    near, near_real = (len(duplicates(x.images, distance=options.near)) for x in (fake, sets.reference))
    cas = _compare_cas(fake, sets.reference, test, options, progress) if options.cas and labels is not None else None
    counts = None if fake.labels is None else tuple(fake.labels.bincount(minlength=train.classes).tolist())
    return Judgement(
        data=train.name,
        n=n,
        n_given=len(images),
        seed=options.seed,
        tables=tables,
        memorisation=memorisation,
        exact_duplicates=exact,
        near_duplicates=near,
        near_duplicates_real=near_real,
        class_counts=counts,
        cas=cas,
        notes=tuple(notes),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Set:
    """N images (N, H, W, C) uint8 with their labels (N,) int64, if there are any."""

    name: str
    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sets:
    """The training images that all rows are compared with, the rows, and all images for the audit of memorisation."""

    reference: _Set
    rows: list[_Set]
    training: Tensor
    held_out: Tensor


def _draw_sets(images: Tensor, labels: Tensor | None, train: Dataset, test: Dataset, n: int, seed: int) -> _Sets:
    """N random images of each kind; floors for which there are too few images are left out."""

    def order(size: int, what: str) -> Tensor:
        return torch.randperm(size, generator=generator_for(seed, f"judge-{what}"))

    def pick(name: str, x: Tensor, y: Tensor | None, ids: Tensor) -> _Set:
        return _Set(name=name, images=x[ids], labels=None if y is None else y[ids])

    training, train_labels = read_images(train), torch.from_numpy(train.labels)
    held_out, test_labels = read_images(test), torch.from_numpy(test.labels)
    train_order, test_order = order(len(train), "training"), order(len(test), "test")[:n]
    rows = [pick("generated", images, labels, order(len(images), "generated")[:n])]
    if len(train) >= 2 * n:
        rows.append(pick("other training images", training, train_labels, train_order[n : 2 * n]))
    if len(test) >= n:
        rows.append(pick("test images", held_out, test_labels, test_order))
    return _Sets(
        reference=pick("training images", training, train_labels, train_order[:n]),
        rows=rows,
        training=training,
        held_out=held_out[test_order],
    )


def _check(
    images: Tensor, labels: Tensor | None, train: Dataset, test: Dataset, options: JudgeOptions
) -> tuple[int, list[str]]:
    """N, and what to note; refuses what cannot be judged."""
    channels, height, width = train.shape
    if train.shape != test.shape or train.classes != test.classes:
        raise SpecError(
            f"training and test images must be of one kind, got {train.name} {train.shape} with {train.classes} "
            f"classes and {test.name} {test.shape} with {test.classes}."
        )
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (height, width, channels):
        raise SpecError(
            f"generated images must be uint8 (N, {height}, {width}, {channels}) as {train.name} has them, "
            f"got {tuple(images.shape)} of {images.dtype}; judge against the data they imitate."
        )
    if labels is not None and (
        len(labels) != len(images) or not 0 <= int(labels.min()) <= labels.max() < train.classes
    ):
        raise SpecError(
            f"{len(images)} generated images need as many labels in 0 .. {train.classes - 1}, the classes of "
            f"{train.name}; got {len(labels)} from {int(labels.min())} to {int(labels.max())}."
        )
    most = min(len(images), len(train))
    n = min(len(images), len(test), len(train) // 2) if options.n is None else options.n
    if not _LEAST <= n <= most:
        raise SpecError(
            f"--n must lie between {_LEAST} and {most}, as there are {len(images)} generated and {len(train)} training "
            f"images; got {n}."
        )
    notes = [
        "every distance grows as N falls: compare with the other rows, and with other generators at the same N only.",
        "the intervals of precision, recall, density and coverage hold for given balls; the true ones are wider.",
        "a network that was trained on the training images sees test images as further away than they are.",
    ]
    notes += [f"no floor from other training images: there are fewer than {2 * n}."] * (len(train) < 2 * n)
    notes += [f"no floor from test images: there are fewer than {n}."] * (len(test) < n)
    notes += ["no labels: no class balance, no agreement, no CAS."] * (labels is None)
    return n, notes


def _table(extractor: Extractor, sets: _Sets, seed: int, progress: Progress) -> FeatureTable:
    reference = extractor(sets.reference.images, progress)
    n, d = reference.values.shape
    rows = tuple(_row(row, extractor(row.images, progress), reference, seed) for row in sets.rows)
    return FeatureTable(names={kind: extractor.label(kind, d, n) for kind in ("FD", "KD", "IS")}, rows=rows)


def _row(images: _Set, features: Features, reference: Features, seed: int) -> Row:
    a, b, p = features.values, reference.values, features.probabilities
    agreement = None
    if images.labels is not None and int(images.labels.max()) < p.shape[1] < 1000:  # Inception's classes are others
        agreement = proportion(int((p.argmax(1) == images.labels).sum()), len(p))
    return Row(
        name=images.name,
        fd=frechet_with_error(a, b, seed=seed),
        fd_infinity=frechet_infinity(a, b, seed=seed),
        kd=kernel_distance(a, b, seed=seed),
        neighbours=neighbour_statistics(b, a),
        inception_score=inception_score(p, seed=seed),
        agreement=agreement,
    )


def _compare_cas(fake: _Set, real: _Set, test: Dataset, options: JudgeOptions, progress: Progress) -> CasComparison:
    results = []
    for row in (fake, real):
        assert row.labels is not None
        results.append(
            classification_accuracy_score(row.images, row.labels, test, options.cas_settings, progress, options.device)
        )
    return CasComparison(generated=results[0], real=results[1])


def _table_lines(table: FeatureTable) -> list[str]:
    lines = []
    for row in table.rows:
        s = row.neighbours
        endless = "" if row.fd_infinity is None else f", {row.fd_infinity:.4g} for N to infinity"
        lines += [
            f"{row.name}:",
            f"  {table.names['FD']} = {row.fd}{endless}",
            f"  {table.names['KD']} = {row.kd}",
            f"  precision {s.precision}, recall {s.recall}, density {s.density}, coverage {s.coverage}",
            f"  {table.names['IS']} = {row.inception_score} (spread over ten parts)",
        ]
        if row.agreement is not None:
            lines.append(f"  classified as labelled: {row.agreement}")
    return lines


def _memorisation_lines(judgement: Judgement) -> list[str]:
    found = judgement.memorisation
    ratio = "not defined" if found.ratio is None else "{:.3f} [{:.3f}, {:.3f}]".format(*found.ratio)
    exact, near, near_real = judgement.exact_duplicates, judgement.near_duplicates, judgement.near_duplicates_real
    return [
        f"nearest training image, median distance: {found.generated:.4f} generated, {found.held_out:.4f} test images",
        f"ratio of the two: {ratio}; far below 1 means copies",
        f"flagged as copies of training images: {found.flagged} of generated, {found.flagged_held_out} of test images",
        f"repeats: {exact} exact, {near} near; among as many training images {near_real} near",
    ]


def _label_lines(judgement: Judgement) -> list[str]:
    lines = []
    if judgement.class_counts is not None:
        lines.append(f"images a class: {min(judgement.class_counts)} to {max(judgement.class_counts)}")
    if judgement.cas is not None:
        fake, real = judgement.cas.generated, judgement.cas.real
        lines.append(
            f"CAS (trained on {fake.n_train} images for {fake.steps} steps): {fake.accuracy} generated, "
            f"{real.accuracy} real"
        )
    return lines
