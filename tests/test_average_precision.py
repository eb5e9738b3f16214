"""Average precision against cases counted by hand: matching, 101 points, scenes that count several times."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from robustgen.detectors.average_precision import (
    THRESHOLDS,
    average_precision,
    intervals,
    iou,
    match,
    recall,
    working_point,
)

A, B, FAR = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [50.0, 50, 60, 60]


def seen(*found: tuple[list[float], int, float]) -> dict[str, Tensor]:
    """Detections: box, label, score each."""
    return {
        "boxes": torch.tensor([box for box, _, _ in found]).reshape(-1, 4),
        "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        "scores": torch.tensor([score for _, _, score in found]),
    }


def there(*objects: tuple[list[float], int]) -> dict[str, Tensor]:
    """Objects: box and label each."""
    return {
        key: value for key, value in seen(*((box, label, 1.0) for box, label in objects)).items() if key != "scores"
    }


def ap50(detections: list[dict[str, Tensor]], truths: list[dict[str, Tensor]]) -> float:
    """At IoU 0.5."""
    return float(average_precision(match(detections, truths))[0])


TWO = there((A, 1), (B, 1))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (seen((A, 1, 0.9), (B, 1, 0.8)), 1.0),
        (seen((A, 1, 0.9), (FAR, 1, 0.8), (B, 1, 0.7)), (51 + 50 * 2 / 3) / 101),  # precision 1 up to recall 1/2
        (seen((FAR, 1, 0.9), (A, 1, 0.8)), 51 * 0.5 / 101),
        (seen((A, 1, 0.9), (A, 1, 0.8), (B, 1, 0.7)), (51 + 50 * 2 / 3) / 101),  # the second on A finds it taken
        (seen((A, 2, 0.9), (B, 1, 0.8)), 51 / 101),  # a class without objects is left out of the mean
        (seen(), 0.0),
        (seen((FAR, 1, 0.9), (FAR, 1, 0.8), (A, 1, 0.7), (B, 1, 0.6)), 0.5),  # precision rises: 1/3, then 1/2 is kept
    ],
)
def test_counted_by_hand(found: dict[str, Tensor], expected: float) -> None:
    """Two objects of class 1 on one scene."""
    assert expected == pytest.approx(ap50([found], [TWO]), abs=1e-12)


def test_the_mean_is_over_classes_with_objects() -> None:
    """Class 1 found, class 2 not, class 3 without objects."""
    assert ap50([seen((A, 1, 0.9), (FAR, 3, 0.9))], [there((A, 1), (B, 2))]) == pytest.approx(0.5)
    assert np.isnan(average_precision(match([seen((A, 1, 0.9))], [there()]))).all()


def test_scores_rank_across_scenes() -> None:
    """A false alarm on another scene, of a higher score, costs precision; of a lower one it does not."""
    truths = [there((A, 1)), there()]
    assert ap50([seen((A, 1, 0.5)), seen((A, 1, 0.9))], truths) == pytest.approx(0.5)
    assert ap50([seen((A, 1, 0.9)), seen((A, 1, 0.5))], truths) == pytest.approx(1.0)


def test_thresholds_are_those_of_coco() -> None:
    """A box of IoU 2/3 counts up to 0.65, one of exactly 1/2 at 0.5 alone."""
    for box, count in (([0.0, 0, 15, 10], 4), ([0.0, 0, 20, 10], 1), ([0.0, 0, 20.1, 10], 0)):
        hits = average_precision(match([seen((box, 1, 0.9))], [there((A, 1))]))
        assert [1.0] * count + [0.0] * (10 - count) == hits.tolist()
    assert (0.5, 0.95, 10) == (THRESHOLDS[0], THRESHOLDS[-1], len(THRESHOLDS))


def test_each_takes_the_object_it_fits_best() -> None:
    """Two objects that overlap: the first detection takes the nearer one, so that the second finds the other."""
    near, other = [0.0, 0, 10, 10], [0.0, 0, 10, 14]
    found = seen(([0.0, 0, 10, 11], 1, 0.9), ([0.0, 0, 10, 14.5], 1, 0.8))
    assert ap50([found], [there((other, 1), (near, 1))]) == pytest.approx(1.0)


def test_iou_in_closed_form() -> None:
    """Shared area over the union; touching boxes and empty ones share nothing."""
    boxes = np.array([[0.0, 0, 4, 4], [2, 2, 6, 6], [4, 0, 8, 4], [1, 1, 1, 1]])
    assert iou(boxes[:1], boxes)[0] == pytest.approx([1, 4 / 28, 0, 0])
    assert iou(boxes[3:], boxes[3:])[0, 0] == 0


def test_weights_are_repetitions() -> None:
    """A scene of weight 3 counts as three equal scenes, one of weight 0 not at all."""
    rng = np.random.default_rng(0)
    boxes = [[float(x), float(y), float(x + 10), float(y + 10)] for x, y in rng.integers(0, 12, (30, 2))]
    truths = [there((boxes[k], 1 + k % 2), (boxes[k + 1], 1)) for k in range(0, 12, 2)]
    found = [seen(*((boxes[k + j], 1 + j % 2, float(rng.random())) for j in range(6))) for k in range(0, 12, 2)]
    weights = np.array([3, 0, 1, 2, 0, 1])
    rows = np.repeat(np.arange(6), weights)
    once, many = match(found, truths), match([found[k] for k in rows], [truths[k] for k in rows])
    assert average_precision(many) == pytest.approx(average_precision(once, weights))
    assert recall(many, 0.4) == pytest.approx(recall(once, 0.4, weights))
    assert average_precision(once) != pytest.approx(average_precision(many))


def test_recall_and_its_working_point() -> None:
    """F1 is largest where the true ones end; recall counts what scores at least so much, of any label where asked."""
    found = seen((A, 1, 0.9), (B, 2, 0.8), (FAR, 1, 0.1))
    matched = match([found], [TWO])
    assert working_point(matched) == pytest.approx(0.9)
    assert (0.5, 0.0) == (recall(matched, 0.85), recall(matched, 0.95))
    assert 1.0 == recall(match([found], [TWO], any_label=True), 0.8)
    assert 0.0 == working_point(match([seen()], [TWO]))


def test_intervals_are_quantiles() -> None:
    """The middle 95 % of what was drawn."""
    drawn = np.linspace(0, 1, 1001)[:, None] * np.array([1.0, 2.0])
    low, high = (np.array([getattr(e, key) for e in intervals(np.array([0.4, 0.8]), drawn)]) for key in ("low", "high"))
    assert low == pytest.approx([0.025, 0.05])
    assert high == pytest.approx([0.975, 1.95])
