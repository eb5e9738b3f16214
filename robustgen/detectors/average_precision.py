"""Average precision and recall of detections, as COCO counts them; and their intervals, by the bootstrap over scenes.

Source: COCO's evaluation (Lin et al. 2014, arXiv:1405.0312, and cocodataset.org): detections of a class, highest score
first, each take the free object of their image and class with the largest IoU, at least the threshold; precision made
monotone, at 101 recalls; means over the classes that have objects, and over ten thresholds from 0.50 to 0.95.
Differs: no crowds, no bands of area; at most as many boxes an image as are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from robustgen.statistics import Estimate

__all__ = [
    "THRESHOLDS",
    "Matched",
    "Scores",
    "average_precision",
    "intervals",
    "iou",
    "match",
    "recall",
    "working_point",
]

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True)
class Scores:
    """Detections of one class over all scenes, highest score first, and its objects.

    Attributes:
        scene: (D,) int64, where each detection was made.
        score: (D,) float64.
        hit: (T, D) bool: whether it took an object, at each threshold.
        objects: (S,) int64, how many objects of the class each scene has.
    """

    scene: Whole
    score: Floats
    hit: npt.NDArray[np.bool_]
    objects: Whole


@dataclass(frozen=True, slots=True)
class Matched:
    """Detections and objects brought together.

    Attributes:
        classes: by label, those with an object or a detection.
        scenes: how many.
    """

    classes: dict[int, Scores]
    scenes: int


def match(
    detections: Sequence[dict[str, Tensor]],
    truths: Sequence[dict[str, Tensor]],
    *,
    any_label: bool = False,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Matched:
    """Bring together what was detected with what is there, scene by scene.

    Args:
        detections: boxes (N, 4), labels (N,), scores (N,) of each scene.
        truths: boxes (M, 4), labels (M,) of each scene.
        any_label: whether labels do not count: an object is found as whatever it is taken for.
        thresholds: of the IoU.
    """
    held: dict[int, list[tuple[int, float, npt.NDArray[np.bool_]]]] = {}
    objects: dict[int, Whole] = {}
    for number, (found, truth) in enumerate(zip(detections, truths, strict=True)):
        seen = {key: value.detach().cpu().double().numpy() for key, value in found.items()}
        there = {key: value.detach().cpu().double().numpy() for key, value in truth.items()}
        if any_label:
            seen["labels"], there["labels"] = np.ones_like(seen["labels"]), np.ones_like(there["labels"])
        for label in sorted({*seen["labels"].tolist(), *there["labels"].tolist()}):
            mine, theirs = seen["labels"] == label, there["labels"] == label
            key = int(label)
            objects.setdefault(key, np.zeros(len(truths), np.int64))[number] = int(theirs.sum())
            order = np.argsort(-seen["scores"][mine], kind="stable")
            scores, boxes = seen["scores"][mine][order], seen["boxes"][mine][order]
            hits = _greedy(iou(boxes, there["boxes"][theirs]), thresholds)
            held.setdefault(key, []).extend((number, float(s), hit) for s, hit in zip(scores, hits.T, strict=True))
    return Matched({label: _sorted(held[label], objects[label], len(thresholds)) for label in objects}, len(truths))


def average_precision(matched: Matched, weights: Whole | None = None) -> Floats:
    """(T,) at each threshold, the mean over the classes that have objects; NaN where none has.

    Args:
        matched: from `match`.
        weights: (S,) how often each scene counts; None for once.
    """
    weights = np.ones(matched.scenes, np.int64) if weights is None else weights
    values = [_of_class(scores, weights) for scores in matched.classes.values() if scores.objects @ weights]
    return np.mean(values, axis=0) if values else np.full(len(THRESHOLDS), np.nan)


def recall(matched: Matched, least: float, weights: Whole | None = None) -> float:
    """Share of the objects of all classes found at the first threshold by boxes that score at least so much."""
    weights = np.ones(matched.scenes, np.int64) if weights is None else weights
    found = sum(
        int((c.hit[0] & (c.score >= least)) @ weights[c.scene]) for c in matched.classes.values()
    )  # fmt: skip
    there = sum(int(c.objects @ weights) for c in matched.classes.values())
    return found / there if there else float("nan")


def working_point(matched: Matched) -> float:
    """The score from which on boxes give the largest F1 over all classes, at the first threshold; 0 without boxes."""
    score = np.concatenate([np.empty(0), *(c.score for c in matched.classes.values())])
    hit = np.concatenate([np.empty(0, bool), *(c.hit[0] for c in matched.classes.values())])
    order = np.argsort(-score, kind="stable")
    if not len(order):
        return 0.0
    there = sum(int(c.objects.sum()) for c in matched.classes.values())
    f1 = 2 * np.cumsum(hit[order]) / (np.arange(len(order)) + 1 + there)
    return float(score[order][int(f1.argmax())])


def intervals(values: Floats, drawn: Floats) -> list[Estimate]:
    """Values (N,) with the middle 95 % of what they came to over resampled scenes, drawn (R, N)."""
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    return [Estimate(float(v), float(a), float(b)) for v, a, b in zip(values, low, high, strict=True)]


def iou(a: Floats, b: Floats) -> Floats:
    """(N, M) intersection over union of boxes (N, 4) and (M, 4), x1 y1 x2 y2."""
    edges = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = edges.clip(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    overlap: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap


def _greedy(overlap: Floats, thresholds: Sequence[float]) -> npt.NDArray[np.bool_]:
    """(T, N) bool: which of N detections, in turn, takes one of M free objects; overlap (N, M)."""
    hit = np.zeros((len(thresholds), len(overlap)), bool)
    for row, least in enumerate(thresholds):
        free = np.ones(overlap.shape[1], bool)
        for number, values in enumerate(overlap):
            candidates = np.where(free, values, -1.0)
            if len(candidates) and candidates.max() >= least:
                hit[row, number] = True
                free[candidates.argmax()] = False
    return hit


def _sorted(held: list[tuple[int, float, npt.NDArray[np.bool_]]], objects: Whole, thresholds: int) -> Scores:
    held = sorted(held, key=lambda entry: -entry[1])  # stable: of equal scores the earlier scene comes first
    hits = np.array([hit for _, _, hit in held], bool).reshape(len(held), thresholds).T
    return Scores(
        np.array([scene for scene, _, _ in held], np.int64), np.array([score for _, score, _ in held]), hits, objects
    )


def _of_class(scores: Scores, weights: Whole) -> Floats:
    """(T,) average precision of one class, scene k counted weights[k] times."""
    each = weights[scores.scene]
    true, all_ = np.cumsum(scores.hit * each, axis=1), np.cumsum(each)
    precision = np.divide(true, all_, out=np.zeros(true.shape), where=all_ > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = true / (scores.objects @ weights)
    values = []
    for row, high in zip(reached, envelope, strict=True):
        place = np.searchsorted(row, _RECALLS, side="left")
        values.append(np.append(high, 0.0)[place].mean())
    return np.array(values)
