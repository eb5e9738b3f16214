"""Attacks by labels towards a class: where they begin, that they stay in the class, and how near they come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import robustgen
from robustgen.attacks.plans import parse_attack
from robustgen.class_images import starts_in_class
from robustgen.engine import Outcome, run
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.runs import read_examples
from robustgen.threat import ThreatModel
from robustgen.verify import verify_run
from tests.helpers import Linear, make_images, make_linear
from tests.test_goals import exact_l2

SHAPE = (1, 4, 6)
NAMES = {"hopskipjump:queries=600:probes=20": 1.15, "boundary:queries=600": 1.15, "surfree:queries=600": 2.5}


def images() -> tuple[Linear, Tensor, Tensor]:
    """Four classes, of which each has images; 60 near grey, the labels are what is predicted."""
    model = make_linear(SHAPE, classes=4)
    x, _ = make_images(model, 60, SHAPE)
    x = 0.5 + 0.3 * (x - 0.5)
    y = model(x).argmax(1)
    assert torch.bincount(y, minlength=4).min() > 0
    return model, x, y


def test_the_nearest_of_ten_images_that_are_predicted_so() -> None:
    """By brute force; an image labelled so that is predicted otherwise is none, and a class of none gives None."""
    model, x, y = images()
    labels = y.clone()
    of_three = (y == 3).nonzero().flatten()
    labels[of_three[1:]] = 0  # one left, and the first ten of class 0 hold some that are predicted as 3
    start = starts_in_class(
        lambda ids: (x[list(ids)], labels[list(ids)]), labels.numpy(), Judge(model, ThreatModel("l2", 1.0)),
        {0: 3, 1: 0, 2: 7}, seed=0,
    )  # fmt: skip
    assert torch.equal(start(0), x[of_three[0]])  # type: ignore[arg-type]
    first = np.flatnonzero(labels.numpy() == 0)[:10]
    held = x[first[y[first].numpy() == 0]]
    assert torch.equal(start(1), held[(held - x[1]).flatten(1).norm(dim=1).argmin()])  # type: ignore[arg-type]
    assert start(2) is None


@pytest.mark.parametrize(("text", "most"), NAMES.items())
def test_near_the_region_of_the_goal(text: str, most: float) -> None:
    """On a linear classifier never below the exact distance, and not far above it.

    SurFree ends at the edge between two half-spaces, however many queries it has: its circles leave the region there.
    """
    model, x, y = images()
    goal, threat = (y + 1) % 4, ThreatModel.unbounded("l2")
    found: dict[int, Outcome] = {}
    judge = Judge(model, threat)

    def fetch(ids: object) -> tuple[Tensor, Tensor]:
        return x[list(ids)], y[list(ids)]  # type: ignore[call-overload]

    run(
        parse_attack(text), Oracle(model), judge, fetch, range(6), threat, seed=0, batch_size=4,
        finish=lambda o: found.__setitem__(o.id, o), goals=lambda ids: goal[list(ids)],
        starts=starts_in_class(fetch, y.numpy(), judge, dict(enumerate(goal.tolist())), seed=0),
    )  # fmt: skip
    ratios = []
    for k in range(6):
        assert found[k].prediction == int(goal[k])
        ratios.append((found[k].distance or 0) / exact_l2(model, x[k], int(goal[k])))
    assert min(ratios) > 1 - 1e-5
    assert max(ratios) < most


def test_from_python_inside_an_eps() -> None:
    """What `attack` returns is predicted as the goal and lies inside; the start, far outside, is not brought inside."""
    model, x, y = images()
    eps = 1.5 * max(exact_l2(model, x[k], int(y[k] + 1) % 4) for k in range(8))
    broken = robustgen.attack(model, x, y, f"l2:{eps}", "hopskipjump:queries=600:probes=20", goal="next")[:8]
    moved = (broken != x[:8]).flatten(1).any(1)
    assert moved.sum() >= 6
    assert torch.equal(model(broken[moved]).argmax(1), (y[:8][moved] + 1) % 4)
    assert (broken - x[:8]).flatten(1).norm(dim=1).max() <= eps * (1 + 1e-6)


def test_an_evaluation_towards_a_class(tmp_path: Path) -> None:
    """Every example classified right reaches the class, with a witness that verifies."""
    record = robustgen.evaluate(
        "fmnist-standard", threat="l2", report="distance", attacks="hopskipjump", queries=300, goal="targeted:6", n=8,
        precision="float32", out=tmp_path / "run",
    )  # fmt: skip
    rows = [row for row in read_examples(tmp_path / "run") if row.broken_by == "hopskipjump"]
    assert len(rows) >= 5
    assert {row.prediction for row in rows} == {6}
    assert record.robust_accuracy.value == 0
    assert verify_run(tmp_path / "run").holds
