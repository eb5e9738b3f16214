"""Random streams: the published answers of Philox, independence of batches, and the right distributions."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from robustgen.errors import SpecError
from robustgen.rng import ExampleRng, philox4x32, stage_seed
from tests.helpers import assert_global_rng_untouched

# Known answers of Philox4x32-10, from the Random123 distribution (kat_vectors): counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    """The generator is Philox4x32-10, word for word."""
    words = philox4x32([torch.tensor([word]) for word in counter], key)
    assert answer == tuple(int(word) for word in words)


def test_streams_belong_to_examples() -> None:
    """An example draws the same numbers alone, in any order and in any company."""
    together = ExampleRng.of(7, [5, 3, 900_000], [0, 2, 1]).normal((2, 3), "start")
    for row, (id_, restart) in enumerate([(5, 0), (3, 2), (900_000, 1)]):
        alone = ExampleRng.of(7, [id_], [restart]).normal((2, 3), "start")
        assert torch.equal(together[row], alone[0])


def test_seed_purpose_id_restart_and_step_all_matter() -> None:
    """No two uses share numbers."""
    draws = [
        ExampleRng.of(0, [0]).uniform((8,), "a"),
        ExampleRng.of(1, [0]).uniform((8,), "a"),
        ExampleRng.of(2**40, [0]).uniform((8,), "a"),
        ExampleRng.of(0, [1]).uniform((8,), "a"),
        ExampleRng.of(0, [0], [1]).uniform((8,), "a"),
        ExampleRng.of(0, [0]).uniform((8,), "b"),
        ExampleRng.of(0, [0]).uniform((8,), "a", step=1),
    ]
    assert len(draws) == len({tuple(draw.flatten().tolist()) for draw in draws})


def test_steps_can_differ_between_rows() -> None:
    """A row at step k draws what a batch at step k draws."""
    rng = ExampleRng.of(0, [4, 4])
    mixed = rng.uniform((5,), "a", step=torch.tensor([2, 9]))
    assert torch.equal(mixed[0], rng.uniform((5,), "a", step=2)[0])
    assert torch.equal(mixed[1], rng.uniform((5,), "a", step=9)[1])


def test_distributions() -> None:
    """Uniform, normal, sign and integer draws pass Kolmogorov-Smirnov and chi-square tests."""
    rng = ExampleRng.of(3, range(50))
    uniform, normal = rng.uniform((400,), "u").flatten().numpy(), rng.normal((400,), "n").flatten().numpy()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    signs = rng.signs((400,), "s")
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((signs > 0).sum()), signs.numel()).pvalue > 1e-3
    many = ExampleRng.of(3, range(6000)).below(torch.full((6000,), 6), "d")
    assert stats.chisquare(torch.bincount(many, minlength=6).numpy()).pvalue > 1e-3


def test_stages_draw_apart() -> None:
    """Two stages of a plan start at different points, each always at the same one."""
    seeds = {stage_seed(seed, label) for seed in (0, 1, 2**64 - 1) for label in ("apgd-ce", "apgd-ce#2", "square")}
    assert len(seeds) == 9
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert stage_seed(5, "square") == stage_seed(5, "square")


def test_below_handles_ranges_of_one_and_less() -> None:
    """A range without choice gives 0."""
    assert [0, 0] == ExampleRng.of(0, [1, 2]).below(torch.tensor([1, 0]), "d").tolist()


def test_the_global_generator_is_left_alone() -> None:
    """Nothing is drawn from torch's own generator."""
    with assert_global_rng_untouched():
        ExampleRng.of(0, [1]).normal((10,), "n")


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "0"])
def test_bad_seeds_are_refused(seed: object) -> None:
    """A seed is an integer that fits in 64 bits."""
    with pytest.raises(SpecError, match="seed must be an integer"):
        ExampleRng.of(seed, [0])  # type: ignore[arg-type]
