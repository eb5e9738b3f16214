from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from torch import Tensor

from robustgen.data import load_data
from robustgen.errors import SpecError
from robustgen.generator.analytic import MixtureDenoiser
from robustgen.generator.denoiser import to_generator_range, to_uint8
from robustgen.generator.draw import draw
from robustgen.generator.generated import read_images
from robustgen.generator.memorisation import (
    MemorisationSettings,
    Pair,
    audit_memorisation,
    duplicates,
    save_pairs,
)
from robustgen.generator.samplers import Heun
from tests.helpers import assert_global_rng_untouched


@pytest.fixture(scope="module")
def real() -> Tensor:
    """The 1,000 bundled images (1000, 28, 28, 1) uint8: real ones, of which some serve as training images."""
    return read_images(load_data("fmnist-test-1k"))


def jittered(x: Tensor, levels: int) -> Tensor:
    """Images with up to so many grey levels added or taken away, pixel by pixel."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randint(-levels, levels + 1, x.shape, generator=g)
    return (x.int() + noise).clamp(0, 255).to(torch.uint8)


def test_copies_are_flagged_and_fresh_images_are_not(real: Tensor) -> None:
    """Of 50 copies with noise and 50 fresh images, the copies are flagged and named, and hardly another."""
    training, held_out = real[:700], real[700:850]
    generated = torch.cat([real[850:900], jittered(training[:50], 6)])
    with assert_global_rng_untouched():
        found = audit_memorisation(generated, training, held_out, MemorisationSettings(neighbours=10))
    assert set(range(50, 100)) <= set(found.flagged_ids)
    assert len(found.flagged_ids) <= 52  # some real images do have a twin
    assert found.flagged_held_out.value < 0.03 < found.flagged.low
    assert all(pair.training == pair.generated - 50 for pair in found.pairs)


def test_ratio_of_copies_and_of_fresh_images(real: Tensor) -> None:
    """Far below 1 for copies; the interval holds 1 for images that are as fresh as the held-out ones."""
    training, held_out = real[:700], real[700:850]
    copies = audit_memorisation(jittered(training[:100], 6), training, held_out).ratio
    fresh = audit_memorisation(real[850:], training, held_out).ratio
    assert copies is not None
    assert fresh is not None
    assert copies[0] < copies[2] < 0.5
    assert fresh[1] < 1 < fresh[2]


def test_a_generator_that_can_only_repeat_is_caught(real: Tensor) -> None:
    """Samples of the mixture of the training images, drawn like those of any generator, are all flagged."""
    training = real[:60]
    points = to_generator_range(training.permute(0, 3, 1, 2).double() / 255)
    samples = draw(MixtureDenoiser(points), Heun(), range(20), seed=3)
    found = audit_memorisation(to_uint8(samples), training, real[700:760])
    assert 1 == found.flagged.value
    assert found.generated < 0.05 * found.held_out


def test_criterion_and_distances_are_those_of_the_definition(real: Tensor) -> None:
    """Flags, medians and pairs agree with SciPy's full matrix of distances."""
    generated, training, held_out = jittered(real[:120], 90), real[100:500], real[500:560]
    settings = MemorisationSettings(alpha=0.7, neighbours=10, pairs=5)
    found = audit_memorisation(generated, training, held_out, settings)
    full = [cdist(x.flatten(1).numpy() / 255, training.flatten(1).numpy() / 255) / 28 for x in (generated, held_out)]
    near = np.sort(full[0], 1)[:, :10]
    relative = near[:, 0] / near.mean(1)
    assert tuple(np.flatnonzero(relative < 0.7)) == found.flagged_ids
    assert 0 < len(found.flagged_ids) < 120
    assert np.median(near[:, 0]) == pytest.approx(found.generated)
    assert np.median(full[1].min(1)) == pytest.approx(found.held_out)
    for pair, i in zip(found.pairs, np.argsort(relative)[:5], strict=True):
        assert (i, full[0][i].argmin()) == (pair.generated, pair.training)
        assert full[0][i].min() == pytest.approx(pair.distance)


def test_a_control_that_is_none_gives_no_ratio(real: Tensor) -> None:
    """Where the held-out images are training images, no ratio is made up."""
    assert audit_memorisation(real[500:520], real[:100], real[:50]).ratio is None


def test_black_against_white_is_one() -> None:
    """The unit: the root of the mean squared difference of pixels in [0, 1], whatever the size of the image."""
    black, white = (torch.full((3, 4, 6, 3), value, dtype=torch.uint8) for value in (0, 255))
    found = audit_memorisation(white, black, black)
    assert 1 == pytest.approx(found.generated)
    assert 0 == found.held_out


def test_exact_duplicates_are_found_and_the_first_is_kept(real: Tensor) -> None:
    """Just the later copies are to be removed."""
    assert [3, 5, 6] == duplicates(real[[4, 1, 7, 1, 9, 4, 1]])
    assert [] == duplicates(real[:50])


def test_near_duplicates_by_a_double_loop(real: Tensor) -> None:
    """The greedy choice from the first image on is that of the definition."""
    x = torch.cat([real[:40], jittered(real[:20], 4), real[10:15]])
    pixels, kept = x.double() / 255, list[int]()
    for i in range(len(x)):
        if all(float((pixels[i] - pixels[j]).square().mean().sqrt()) > 0.02 for j in kept):
            kept.append(i)
    expected = [i for i in range(len(x)) if i not in kept]
    assert 25 == len(expected)
    assert expected == duplicates(x, distance=0.02)
    assert [60, 61, 62, 63, 64] == duplicates(x)


def test_an_image_near_a_removed_one_only_is_kept() -> None:
    """In a chain of three, the last is near the second, which goes; so the last stays."""
    chain = torch.tensor([100, 105, 110], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 4, 4, 1)
    assert [1] == duplicates(chain, distance=6 / 255)


def test_picture_of_pairs(real: Tensor, tmp_path: Path) -> None:
    """Left the generated image, right its training image, each three times as large, with a white line around."""
    pairs = [Pair(generated=0, training=7, distance=0.1), Pair(generated=1, training=5, distance=0.2)]
    save_pairs(real[:2], real, pairs, tmp_path / "pairs.png", columns=1)
    with Image.open(tmp_path / "pairs.png") as file:
        picture = torch.from_numpy(np.array(file.convert("L")))
    assert (2 * 85 + 1, 2 * 85 + 1) == tuple(picture.shape)
    expected = {(0, 0): 0, (0, 1): 7, (1, 0): 1, (1, 1): 5}
    for (row, column), i in expected.items():
        found = picture[85 * row + 1 : 85 * row + 85 : 3, 85 * column + 1 : 85 * column + 85 : 3]
        assert (found.int() - real[i, :, :, 0].int()).abs().max() <= 1
    with pytest.raises(SpecError, match="no pairs"):
        save_pairs(real[:2], real, [], tmp_path / "none.png")


def test_wrong_input_is_refused(real: Tensor) -> None:
    """Each message says which images are wrong and how."""
    with pytest.raises(SpecError, match=r"generated images must be uint8 .* torch.float32"):
        audit_memorisation(real[:5].float(), real, real)
    with pytest.raises(SpecError, match=r"one shape .*\(14, 28, 1\), \(28, 28, 1\)"):
        audit_memorisation(real[:5, :14], real, real)
    with pytest.raises(SpecError, match="3 training images or more, got 2"):
        audit_memorisation(real[:5], real[:2], real)
    with pytest.raises(SpecError, match="no generated images"):
        duplicates(real[:0])
    with pytest.raises(SpecError, match="alpha"):
        MemorisationSettings(alpha=0)
