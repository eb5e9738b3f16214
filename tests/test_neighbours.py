from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator import neighbours
from robustgen.generator.neighbours import blocks_of_distances, nearest, neighbour_statistics, radii


def draw(n: int, seed: int, *, d: int = 4, shift: float = 0.0) -> Tensor:
    """Standard normal float32 rows (n, d)."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that results are put together from many."""
    monkeypatch.setattr(neighbours, "_BLOCK", 200)


@pytest.mark.usefixtures("small_blocks")
def test_nearest_is_a_sort_of_all_distances() -> None:
    """Distances and places agree with SciPy's full matrix."""
    x, y = draw(70, 0), draw(90, 1)
    full = cdist(x.double().numpy(), y.double().numpy())
    near, places = nearest(x, y, 5)
    np.testing.assert_allclose(np.sort(full, 1)[:, :5], near.numpy(), rtol=1e-9)
    np.testing.assert_array_equal(np.argsort(full, 1)[:, :5], places.numpy())


@pytest.mark.usefixtures("small_blocks")
def test_blocks_stay_below_their_limit() -> None:
    """No block holds more numbers than `_BLOCK`, and all rows come once."""
    seen = [(rows, block.numel()) for rows, block in blocks_of_distances(draw(70, 0), draw(90, 1))]
    assert max(size for _, size in seen) <= 200
    assert list(range(70)) == [row for rows, _ in seen for row in range(rows.start, rows.stop)]


def test_distances_far_from_the_origin() -> None:
    """Neighbours 0.01 apart at a distance of 1000, where float32 would round the difference away."""
    x = 1000 + 0.01 * torch.arange(64, dtype=torch.float64)[:, None] * torch.ones(1, 4, dtype=torch.float64)
    np.testing.assert_allclose(np.full(64, 0.02), radii(x, 1).numpy(), rtol=1e-4)


def test_bytes_are_compared_exactly() -> None:
    """Squared distances of images as bytes are whole numbers without error, up to 3072 values of 255."""
    x = torch.randint(0, 256, (6, 3072), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ((_, block),) = blocks_of_distances(x, x)
    expected = ((x[:, None].long() - x[None].long()) ** 2).sum(2)
    assert torch.equal(expected.double(), block)


def test_a_copy_is_a_neighbour_and_a_point_is_not_its_own() -> None:
    """Radius 0 for a point that is there twice; the distance to the other for one that is not."""
    x = torch.tensor([[0.0], [0.0], [3.0]])
    assert [0.0, 0.0, 3.0] == radii(x, 1).tolist()


@pytest.mark.usefixtures("small_blocks")
def test_statistics_are_those_of_the_definition() -> None:
    """Precision, recall, density and coverage agree with loops over all balls."""
    real, fake = draw(60, 0), draw(60, 1, shift=0.7)
    within = {name: np.sort(cdist(x, x), 1) for name, x in (("real", real.numpy()), ("fake", fake.numpy()))}
    across = cdist(fake.double().numpy(), real.double().numpy())  # (fake, real)
    r3, r5, f3 = within["real"][:, 3], within["real"][:, 5], within["fake"][:, 3]
    found = neighbour_statistics(real, fake)
    assert np.mean([any(across[j] <= r3) for j in range(60)]) == pytest.approx(found.precision.value)
    assert np.mean([any(across[:, i] <= f3) for i in range(60)]) == pytest.approx(found.recall.value)
    counts = np.array([sum(across[j] <= r5) / 5 for j in range(60)])
    assert counts.mean() == pytest.approx(found.density.value)
    assert counts.std(ddof=1) / np.sqrt(60) == pytest.approx(found.density.error)
    assert np.mean([across[:, i].min() <= r5[i] for i in range(60)]) == pytest.approx(found.coverage.value)
    assert 0 < found.precision.value < 1
    assert 0 < found.recall.value < 1


def test_equal_sets_and_distant_sets() -> None:
    """The same points score 1, points elsewhere 0."""
    x = draw(100, 0)
    same, apart = neighbour_statistics(x, x.clone()), neighbour_statistics(x, x + 100)
    assert (1, 1, 1) == (same.precision.value, same.recall.value, same.coverage.value)
    assert (0, 0, 0, 0) == (apart.precision.value, apart.recall.value, apart.density.value, apart.coverage.value)


def test_equal_distributions() -> None:
    """Density is about 1 and coverage about 1 - 2^-5 for two sets of one distribution."""
    found = neighbour_statistics(draw(2000, 0), draw(2000, 1))
    assert 1 == pytest.approx(found.density.value, abs=0.05)
    assert 1 - 2**-5 == pytest.approx(found.coverage.value, abs=0.015)


def test_lost_and_invented_variety_are_told_apart() -> None:
    """Fakes in a corner of the data keep precision and lose recall; fakes all around it the other way."""
    real, corner, around = draw(500, 0), draw(500, 1) * 0.3, draw(500, 2) * 3
    few, many = neighbour_statistics(real, corner), neighbour_statistics(real, around)
    assert min(few.precision.value, many.recall.value) > 0.9
    assert max(few.recall.value, many.precision.value) < 0.3


def test_points_on_the_rim_are_inside() -> None:
    """Of points in pairs, each lies in its own ball and on the rim of its mate's, whatever the rounding."""
    centres = 100 * torch.arange(1, 101)[:, None] + draw(100, 0, d=64)
    real = torch.cat([centres + 0.1 * draw(100, 1, d=64), centres + 0.1 * draw(100, 2, d=64)])
    assert 2 == neighbour_statistics(real, real.clone(), k_density=1).density.value


def test_too_few_points_are_refused() -> None:
    """The messages name both numbers."""
    with pytest.raises(SpecError, match="4 points or more, got 3"):
        nearest(draw(3, 0), draw(3, 0), 3, own=True)
    with pytest.raises(SpecError, match="6 points a set or more, got 5 real and 9 fake"):
        neighbour_statistics(draw(5, 0), draw(9, 1))
    with pytest.raises(SpecError, match="shapes"):
        nearest(draw(5, 0), draw(5, 0, d=3), 1)
