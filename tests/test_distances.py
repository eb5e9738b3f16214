from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.distances import (
    Moments,
    _mmd,
    _without,
    frechet_distance,
    frechet_infinity,
    frechet_of,
    frechet_with_error,
    inception_score,
    kernel_distance,
    moments,
)
from tests.helpers import assert_global_rng_untouched


def draw(n: int, d: int, seed: int, *, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated float64 rows (n, d); the correlations are the same for every seed."""
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * z @ mix + shift


@pytest.mark.parametrize(("n", "m"), [(200, 300), (40, 12)])
def test_frechet_distance_is_that_of_scipys_matrix_root(n: int, m: int) -> None:
    """The trace of the root equals that of scipy.linalg.sqrtm, also for a singular covariance (12 rows, d = 16)."""
    a, b = draw(n, 16, 0), draw(m, 16, 1, shift=0.5, scale=1.5)
    c1, c2 = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(c1 + c2 - 2 * root)
    # scipy's root of a singular product is good to about the root of the machine's precision
    assert expected == pytest.approx(frechet_distance(a, b), rel=1e-10 if m > 16 else 1e-5)


def test_frechet_distance_of_diagonal_gaussians() -> None:
    """With diagonal covariances the distance is sum (m1 - m2)^2 + (s1 - s2)^2."""
    s1, s2 = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 1.0, 5.0]).double()
    m1, m2 = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([0.0, 2.0, 1.0]).double()
    a, b = Moments(m1, torch.diag(s1**2), 10), Moments(m2, torch.diag(s2**2), 10)
    assert 15.0 == pytest.approx(frechet_of(a, b), abs=1e-12)
    assert 15.0 == pytest.approx(frechet_of(b, a), abs=1e-12)


def test_frechet_distance_of_a_set_to_itself_is_zero() -> None:
    """No residue of rounding is left that a small distance could be mistaken for."""
    a = draw(500, 16, 0)
    assert 0 == pytest.approx(frechet_distance(a, a.flip(0)), abs=1e-9)


def test_moments_without_some_rows_are_those_of_the_other_rows() -> None:
    """The subtraction that the jackknife relies on is exact."""
    a = draw(50, 5, 0, shift=3.0)
    left, expected = _without(moments(a), a[10:17]), moments(torch.cat([a[:10], a[17:]]))
    assert expected.n == left.n
    torch.testing.assert_close(expected.mean, left.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(expected.covariance, left.covariance, rtol=1e-12, atol=1e-12)


def test_error_of_the_frechet_distance_is_the_spread_over_fresh_sets() -> None:
    """The jackknife's error agrees with the standard deviation over 60 pairs of independent sets."""
    found = [frechet_with_error(draw(200, 3, 2 * k), draw(300, 3, 2 * k + 1, shift=1.0)) for k in range(60)]
    spread = float(np.std([one.value for one in found], ddof=1))
    error = float(np.sqrt(np.mean([one.error**2 for one in found])))
    assert spread == pytest.approx(error, rel=0.25)


def test_error_of_the_frechet_distance_does_not_depend_on_the_order() -> None:
    """Rows sorted by class give about the same error as shuffled ones."""
    a, b = draw(400, 3, 0), draw(400, 3, 1, shift=1.0)
    one = frechet_with_error(a, b)
    other = frechet_with_error(a[a[:, 0].argsort()], b[b[:, 0].argsort()])
    assert one.value == pytest.approx(other.value)
    assert one.error == pytest.approx(other.error, rel=0.5)


def test_endless_sets_take_the_bias_away() -> None:
    """Over 20 pairs of sets of one distribution the plain distance is far above 0, the extrapolated one is not."""
    pairs = [(draw(300, 6, 2 * k), draw(300, 6, 2 * k + 1)) for k in range(20)]
    plain = np.array([frechet_distance(*pair) for pair in pairs])
    endless = np.array([frechet_infinity(*pair) for pair in pairs], dtype=float)
    assert plain.mean() > 5 * abs(endless.mean())
    assert frechet_infinity(draw(30, 8, 0), draw(30, 8, 1)) is None


def test_mmd_is_the_double_loop() -> None:
    """The matrix form equals the definition with loops over pairs."""
    x, y = draw(7, 4, 0).numpy(), draw(7, 4, 1, shift=0.3).numpy()

    def kernel(p: np.ndarray, q: np.ndarray) -> float:
        return float((p @ q / 4 + 1) ** 3)

    m = range(7)
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i in m for j in m if i != j) / 42
    across = sum(kernel(x[i], y[j]) for i in m for j in m) / 49
    assert within - 2 * across == pytest.approx(_mmd(torch.from_numpy(x), torch.from_numpy(y)), rel=1e-12)


def test_kernel_distance_is_unbiased_and_knows_its_error() -> None:
    """For one distribution its mean over 40 pairs of sets is 0, and its error is the spread over them."""
    found = [
        kernel_distance(draw(120, 4, 2 * k), draw(120, 4, 2 * k + 1), subsets=20, size=30, seed=k) for k in range(40)
    ]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 3 * values.std(ddof=1) / math.sqrt(40)
    assert (values < 0).any()
    far = [kernel_distance(draw(120, 4, 2 * k), draw(120, 4, 2 * k + 1, shift=1.0), size=30) for k in range(40)]
    spread = np.std([one.value for one in far], ddof=1)
    assert spread == pytest.approx(np.mean([one.error for one in far]), rel=0.5)


def test_kernel_distance_tells_distributions_apart_that_share_mean_and_covariance() -> None:
    """The cubic kernel sees the third moment, to which the Fréchet distance is blind."""
    g = torch.Generator().manual_seed(0)
    skewed = -torch.rand(2000, 3, generator=g, dtype=torch.float64).log() - 1
    plain = torch.randn(2000, 3, generator=g, dtype=torch.float64)
    same = torch.randn(2000, 3, generator=g, dtype=torch.float64)
    found, floor = (kernel_distance(x, plain, subsets=20, size=500) for x in (skewed, same))
    assert found.value > 5 * found.error
    assert abs(floor.value) < 3 * floor.error


def test_inception_score_of_known_answers() -> None:
    """Sure answers on K equal classes score K, even in a file sorted by class; equal answers score 1."""
    sure = torch.eye(5).repeat_interleave(200, 0)
    assert 5 == pytest.approx(inception_score(sure).value, rel=0.03)
    assert 5 == pytest.approx(inception_score(sure, splits=2).value, rel=0.01)
    assert 1 == pytest.approx(inception_score(torch.full((50, 4), 0.25)).value)


def test_inception_score_is_that_of_scipys_entropy() -> None:
    """With all rows in both halves alike, the score is exp(mean relative entropy) as scipy has it."""
    p = torch.rand(1, 6, generator=torch.Generator().manual_seed(0)).double()
    p = torch.cat([p / p.sum(), (p / p.sum()).flip(1)]).repeat(500, 1)
    q = p.mean(0).numpy()
    expected = np.exp(np.mean([scipy.stats.entropy(row, q) for row in p.numpy()]))
    assert expected == pytest.approx(inception_score(p, splits=2).value, rel=5e-3)


def test_no_global_random_numbers() -> None:
    """All subsets come from seeded generators of their own."""
    a, b = draw(100, 3, 0), draw(100, 3, 1)
    with assert_global_rng_untouched():
        one = kernel_distance(a, b), frechet_with_error(a, b), frechet_infinity(a, b)
        other = kernel_distance(a, b), frechet_with_error(a, b), frechet_infinity(a, b)
    assert one == other


def test_wrong_input_is_refused() -> None:
    """Each message says what was expected and what came."""
    a = draw(10, 3, 0)
    with pytest.raises(SpecError, match=r"\(10, 3\) and \(10, 4\)"):
        frechet_distance(a, draw(10, 4, 0))
    with pytest.raises(SpecError, match="N >= 2"):
        frechet_distance(a[:1], a)
    broken = a.clone()
    broken[4, 1] = math.nan
    with pytest.raises(SpecError, match="row 4"):
        kernel_distance(a, broken)
    with pytest.raises(SpecError, match="4 rows"):
        kernel_distance(a, a[:3])
    with pytest.raises(SpecError, match="softmax"):
        inception_score(a)
    with pytest.raises(SpecError, match="splits"):
        inception_score(torch.full((5, 4), 0.25))
