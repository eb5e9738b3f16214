"""SimBA: query by query Algorithm 1 written out, and exact where the answer is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.fft import idctn
from torch import Tensor, nn

from robustgen.attacks.cosines import cosines, from_frequencies
from robustgen.attacks.simba import SimBA, SimBADCT
from robustgen.errors import SpecError
from robustgen.threat import ThreatModel
from tests.helpers import make_linear
from tests.query_helpers import double_task, outcomes_of, rounds_of


def directions(name: str, shape: tuple[int, int, int]) -> list[Tensor]:
    """The basis: each pixel, or each low cosine by scipy, channel by channel."""
    channels, height, width = shape
    rows, columns = (height, width) if name == "simba" else (-(-height // 2), -(-width // 2))
    found = []
    for channel in range(channels):
        for row in range(rows):
            for column in range(columns):
                one = np.zeros((height, width))
                one[row, column] = 1
                image = torch.zeros(shape, dtype=torch.float64)
                image[channel] = torch.from_numpy(one if name == "simba" else idctn(one, norm="ortho"))
                found.append(image)
    return found


def algorithm_1(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, basis: list[Tensor], order: list[int], count: int
) -> list[Tensor]:
    """The points that the paper's loop queries, with what the docstring says it does otherwise."""

    def f(z: Tensor) -> float:
        logits = model(z[None])[0]
        others = torch.cat([logits[: int(y)], logits[int(y) + 1 :]])
        return float(logits[int(y)] - others.max())

    queried, here, best = [x], x, f(x)
    while len(queried) < count:
        for k in order:
            for side in (1, -1):
                candidate = threat.project(x[None], (here + side * 0.2 * basis[k])[None])[0]
                if float((candidate - here).abs().max()) < 1e-7:
                    continue
                queried.append(candidate)
                if f(candidate) < best:
                    here, best = candidate, f(candidate)
                    break
    return queried[:count]


@pytest.mark.parametrize("threat", [ThreatModel("linf", 0.03), ThreatModel("l2", 0.4), ThreatModel("l1", 2.0)], ids=str)
@pytest.mark.parametrize(("name", "kind"), [("simba", SimBA), ("simba-dct", SimBADCT)])
def test_every_query_is_that_of_the_paper(name: str, kind: Callable[..., SimBA], threat: ThreatModel) -> None:
    """Order, sides, acceptance, projection and what is skipped, over more than one pass through the basis."""
    shape = (2, 4, 3)
    model, x, y = double_task(shape)
    x[0, :, 0] = 0.0  # a wall: the step down leads nowhere there
    y = model(x).argmax(1)
    states = rounds_of(kind(), model, x, y, threat, 70)
    basis = directions(name, shape)
    for row in range(len(x)):
        expected = algorithm_1(model, x[row], y[row], threat, basis, states[0].order[row].tolist(), 70)
        for k, point in enumerate(expected):
            torch.testing.assert_close(states[k + 1].x_adv[row], point, atol=1e-6, rtol=0, msg=f"row {row}, query {k}")
    orders = [sorted(order) for order in states[0].order.tolist()]
    assert all(order == list(range(len(basis))) for order in orders)
    assert not torch.equal(states[0].order[0], states[0].order[1])


def test_linear_optimum() -> None:
    """In Linf each pixel needs a sign, two queries at most: broken just above the closed form, never below it."""
    model = make_linear(classes=2)
    x = 0.5 + 0.1 * (torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5)
    y = model(x).argmax(1)
    distance, tried = model.distance(x, y, "linf"), 0
    for k in range(8):
        if not 1e-3 < float(distance[k]) < 0.1:
            continue
        tried += 1
        for factor, expected in ((1.02, True), (0.98, False)):
            threat = ThreatModel("linf", factor * float(distance[k]))
            (found,) = outcomes_of("simba:queries=129", model, x[k : k + 1], y[k : k + 1], threat)
            assert expected == found.broken
    assert tried >= 4


def test_cosines_are_orthonormal() -> None:
    """Rows of unit length at right angles, and an image from coefficients as scipy makes it."""
    for size in (1, 2, 7, 28):
        torch.testing.assert_close(torch.eye(size), cosines(size) @ cosines(size).T, atol=1e-6, rtol=0)
    coefficients = torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    full = np.zeros((2, 3, 6, 9))
    full[:, :, :3, :4] = coefficients.numpy()
    expected = torch.from_numpy(idctn(full, axes=(2, 3), norm="ortho")).float()
    torch.testing.assert_close(expected, from_frequencies(coefficients, 6, 9), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [SimBA, SimBADCT])
def test_bad_parameters(kind: Callable[..., SimBA]) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=r"queries must be a whole number >= 1, got 0"):
        kind(queries=0)
    with pytest.raises(SpecError, match="step_size must be positive"):
        kind(step_size=0.0)
    with pytest.raises(SpecError, match="frequencies is a share"):
        SimBADCT(frequencies=1.5)
