from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustgen.data import load_data
from robustgen.dataset import Dataset
from robustgen.errors import SpecError
from robustgen.generator.cas import CasSettings, _batches, classification_accuracy_score
from robustgen.generator.generated import read_images
from tests.helpers import assert_global_rng_untouched
from tests.training_helpers import write_data

SMALL = CasSettings(steps=60, batch_size=32, lr=1e-2, widths=(8,), depths=(1,), stem_stride=1, augment=("crop",))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor, Dataset]:
    """Training images (200, 8, 8, 1) uint8 and labels in two classes, and 300 test images of the same kind."""
    folders = [tmp_path_factory.mktemp(name) for name in ("train", "test")]
    paths = [write_data(folder, n, seed) for folder, n, seed in zip(folders, (200, 300), (0, 1), strict=True)]
    train, test = (load_data(f"npz:{path}") for path in paths)
    return read_images(train), torch.from_numpy(train.labels), test


def test_good_images_teach_and_wrong_labels_do_not(toy: tuple[Tensor, Tensor, Dataset]) -> None:
    """A network trained on real images does well on real test images; trained with shuffled labels it guesses."""
    images, labels, test = toy
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    with assert_global_rng_untouched():
        good = classification_accuracy_score(images, labels, test, SMALL)
        bad = classification_accuracy_score(images, shuffled, test, SMALL)
    assert good.accuracy.value > 0.9
    assert bad.accuracy.low < 0.6 < good.accuracy.low
    assert (200, 60) == (good.n_train, good.steps)
    assert good.seconds > 0


def test_inverted_labels_score_below_chance(toy: tuple[Tensor, Tensor, Dataset]) -> None:
    """The test labels are those of the real data, not of the training images."""
    images, labels, test = toy
    assert 0.1 > classification_accuracy_score(images, 1 - labels, test, SMALL).accuracy.value


def test_the_same_seed_gives_the_same_score(toy: tuple[Tensor, Tensor, Dataset]) -> None:
    """Weights, order and augmentation come from the seed alone, and follow it."""
    images, labels, test = toy
    short = replace(SMALL, steps=20)
    runs = [classification_accuracy_score(images, labels, test, replace(short, seed=seed)) for seed in (0, 0, 1, 2)]
    assert runs[0].accuracy == runs[1].accuracy
    assert 1 < len({run.accuracy.value for run in runs})


def test_the_budget_is_one_of_steps() -> None:
    """60 or 200 images make as many steps, and each pass shows every image once before the next begins."""
    for n in (60, 200):
        rows = list(_batches(n, SMALL))
        assert [32] * 60 == [len(part) for part in rows]
        shown = torch.cat(rows)
        for first in range(0, len(shown) - n, n):
            assert torch.equal(torch.arange(n), shown[first : first + n].sort().values)
        assert not torch.equal(shown[:n], shown[n : 2 * n])


def test_three_channels_and_rectangles() -> None:
    """Any size and number of channels; here the class is the colour."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 3
    x = torch.randint(0, 100, (240, 3, 6, 10), generator=g, dtype=torch.uint8)
    x[torch.arange(240), y] += 100
    test = load_data((x[120:], y[120:]))
    settings = replace(SMALL, steps=30)
    found = classification_accuracy_score(x[:120].permute(0, 2, 3, 1), y[:120], test, settings)
    assert found.accuracy.value > 0.9


def test_wrong_input_is_refused(toy: tuple[Tensor, Tensor, Dataset], tmp_path: Path) -> None:
    """Before the first step, with what was expected."""
    images, labels, test = toy
    with pytest.raises(SpecError, match=r"uint8 \(N, 8, 8, 1\)"):
        classification_accuracy_score(images.float(), labels, test)
    with pytest.raises(SpecError, match="200 images need as many whole labels"):
        classification_accuracy_score(images, labels[:7], test)
    with pytest.raises(SpecError, match=r"0 \.\. 1"):
        classification_accuracy_score(images, labels + 1, test)
    with pytest.raises(SpecError, match="steps"):
        CasSettings(steps=1)
    with pytest.raises(SpecError, match="'mixup'"):
        CasSettings(augment=("mixup",))
