"""Does a generator repeat its training images, or itself? Distances between pixels, with held-out images as control.

A distance here is the root of the mean squared difference of two images' pixels in [0, 1], that is L2 over the root of
the number of values: 0 for copies, 1 for black against white, the same scale for all image sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.neighbours import blocks_of_distances, nearest
from robustgen.progress import Progress, Silent
from robustgen.rng import generator_for
from robustgen.statistics import Estimate, proportion

__all__ = [
    "Memorisation",
    "MemorisationSettings",
    "Pair",
    "audit_memorisation",
    "closest_pairs",
    "duplicates",
    "save_pairs",
]

_RESAMPLES = 1000
_ROWS = 500  # images between two reports of progress


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorisationSettings:
    """What counts as extracted.

    Args:
        alpha: an image is flagged where its nearest training image is nearer than alpha times the mean distance to
            its `neighbours` nearest ones.
        neighbours: n; fewer where there are fewer training images.
        pairs: how many of the closest pairs are kept.
        seed: of the bootstrap.
    """

    alpha: float = 0.5
    neighbours: int = 50
    pairs: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise SpecError(f"alpha must lie in (0, 1], got {self.alpha:g}.")
        if self.neighbours < 2 or self.pairs < 0:
            raise SpecError(f"neighbours must be >= 2 and pairs >= 0, got {self.neighbours} and {self.pairs}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A generated image, the training image nearest to it, and their distance."""

    generated: int
    training: int
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memorisation:
    """How near generated images lie to training images, and how near images lie that cannot have been copied.

    Attributes:
        generated: median distance of a generated image to its nearest training image.
        held_out: the same for held-out images.
        ratio: generated / held_out with a 95 % bootstrap interval: about 1 is fine, far below 1 means copies.
            None where about half of the held-out images are copies of training images.
        flagged: share of generated images that the criterion of extraction flags.
        flagged_held_out: share of held-out images that it flags: its false alarms on this data.
        flagged_ids: the generated images that are flagged.
        pairs: the closest pairs, nearest relative to their surroundings first.
    """

    generated: float
    held_out: float
    ratio: tuple[float, float, float] | None
    flagged: Estimate
    flagged_held_out: Estimate
    flagged_ids: tuple[int, ...]
    pairs: tuple[Pair, ...]


def audit_memorisation(
    generated: Tensor,
    training: Tensor,
    held_out: Tensor,
    settings: MemorisationSettings | None = None,
    progress: Progress | None = None,
) -> Memorisation:
    """Compare generated images with training images, beside images that the generator never saw.

    Near in pixels is what is found: a copy that is shifted, mirrored or tinted is not.

    Args:
        generated, training, held_out: (N, H, W, C) uint8 each.
        settings: what counts as extracted.
        progress: told about every few images.

    Raises:
        SpecError: images of other shapes or types, or fewer than three training images.

    Source: Carlini et al. 2023, arXiv:2301.13188, section 5.1, for the criterion of extraction.
    Differs: plain L2 on the image as a whole, without the paper's tiles; neighbours are sought in the whole training
        set.
    """
    settings, progress = settings or MemorisationSettings(), progress or Silent()
    points = [_points(x, name) for x, name in ((generated, "generated"), (training, "training"), (held_out, "test"))]
    if len({tuple(x.shape[1:]) for x in (generated, training, held_out)}) > 1:
        shapes = ", ".join(str(tuple(x.shape[1:])) for x in (generated, training, held_out))
        raise SpecError(f"generated, training and held-out images must have one shape (H, W, C), got {shapes}.")
    if len(training) < 3:
        raise SpecError(f"an audit of memorisation needs 3 training images or more, got {len(training)}.")
    k = min(settings.neighbours, len(training))
    near, places = _nearest(points[0], points[1], k, "memorisation", progress)
    control, _ = _nearest(points[2], points[1], k, "held-out images", progress)
    relative, relative_control = _relative(near), _relative(control)
    flagged = relative < settings.alpha
    closest = relative.argsort(stable=True)[: settings.pairs].tolist()
    return Memorisation(
        generated=_median(near[:, 0]),
        held_out=_median(control[:, 0]),
        ratio=_ratio(near[:, 0], control[:, 0], settings.seed),
        flagged=proportion(int(flagged.sum()), len(flagged)),
        flagged_held_out=proportion(int((relative_control < settings.alpha).sum()), len(control)),
        flagged_ids=tuple(flagged.nonzero()[:, 0].tolist()),
        pairs=tuple(Pair(generated=i, training=int(places[i, 0]), distance=float(near[i, 0])) for i in closest),
    )


def closest_pairs(generated: Tensor, training: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """The images of some pairs in turn, generated | training | generated | ...: (2 P, H, W, C) uint8."""
    rows = [x for pair in pairs for x in (generated[pair.generated], training[pair.training])]
    return torch.stack(rows) if rows else generated[:0]


def save_pairs(generated: Tensor, training: Tensor, pairs: Sequence[Pair], path: Path, *, columns: int = 4) -> None:
    """Save a PNG of pairs, each a generated image with its nearest training image at its right, `columns` pairs a row.

    Raises:
        SpecError: there are no pairs.
    """
    from robustgen.generator.grid import save_grid  # here, not above: the audit itself needs no picture

    if not pairs:
        raise SpecError("there are no pairs to draw: ask for pairs >= 1.")
    x = closest_pairs(generated, training, pairs).permute(0, 3, 1, 2).float() / 255
    save_grid(x * 2 - 1, path, 2 * min(columns, len(pairs)))


def duplicates(images: Tensor, *, distance: float = 0.0) -> list[int]:
    """Which images to remove so that no two of those left are equal, or nearer than `distance`; the first is kept.

    Args:
        images: (N, H, W, C) uint8.
        distance: up to which two images count as the same, in pixels of [0, 1]; 0 finds exact copies only, and takes
            time in proportion to N rather than to N^2.

    Returns:
        Ascending ids. An image near a removed one only is kept.
    """
    points = _points(images, "generated")
    firsts: dict[bytes, int] = {}
    for i, row in enumerate(points.cpu().numpy()):
        firsts.setdefault(row.tobytes(), i)
    kept = torch.tensor(sorted(firsts.values()), dtype=torch.int64)
    if distance > 0:
        kept = kept[_apart(points[kept.to(points.device)], distance).cpu()]
    removed = torch.ones(len(points), dtype=torch.bool)
    removed[kept] = False
    return removed.nonzero()[:, 0].tolist()


def _apart(points: Tensor, distance: float) -> Tensor:
    """Which rows (N,) bool to keep, greedily from the first, so that all are further apart than `distance`."""
    limit = (distance * 255) ** 2 * points.shape[1]
    keep = torch.ones(len(points), dtype=torch.bool)
    for rows, block in blocks_of_distances(points, points):
        near = (block <= limit).cpu()
        for i in near.sum(1).gt(1).nonzero()[:, 0].tolist():  # a row is always near itself
            place = rows.start + i
            keep[place] = not bool((near[i, :place] & keep[:place]).any())
    return keep


def _points(x: Tensor, name: str) -> Tensor:
    """Images as rows (N, H W C), still bytes: whole numbers, on which float64 distances are exact."""
    if x.ndim != 4 or x.dtype != torch.uint8:
        raise SpecError(f"{name} images must be uint8 (N, H, W, C), got {tuple(x.shape)} of {x.dtype}.")
    if not x.numel():
        raise SpecError(f"there are no {name} images: shape {tuple(x.shape)}.")
    return x.flatten(1)


def _nearest(x: Tensor, y: Tensor, k: int, label: str, progress: Progress) -> tuple[Tensor, Tensor]:
    """`nearest`, in the unit of this file, with reports."""
    progress.start(label, len(x))
    found = []
    for first in range(0, len(x), _ROWS):
        found.append(nearest(x[first : first + _ROWS], y, k))
        progress.advance(min(first + _ROWS, len(x)), "nearest training images")
    unit = 255 * math.sqrt(x.shape[1])
    return torch.cat([near for near, _ in found]) / unit, torch.cat([places for _, places in found])


def _relative(near: Tensor) -> Tensor:
    """Distance to the nearest over the mean distance to the k nearest (N, k): in [0, 1]; 0 for copies."""
    return near[:, 0] / near.mean(1).clamp(min=1e-300)


def _median(x: Tensor) -> float:
    return float(x.quantile(0.5))


def _ratio(generated: Tensor, held_out: Tensor, seed: int) -> tuple[float, float, float] | None:
    """Ratio of medians, and the 2.5 % and 97.5 % quantiles of it over bootstrap samples of both sets."""
    rng, values = generator_for(seed, "memorisation"), []
    for _ in range(_RESAMPLES):
        a, b = (_median(x[torch.randint(len(x), (len(x),), generator=rng).to(x.device)]) for x in (generated, held_out))
        if b == 0:
            return None
        values.append(a / b)
    low, high = np.quantile(values, [0.025, 0.975])
    return _median(generated) / _median(held_out), float(low), float(high)
