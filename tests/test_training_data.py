"""Training images: which are held out, their order, and augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from robustgen.errors import SpecError
from robustgen.training_data import TrainingData, generator_for, random_crop, random_flip, split_validation
from tests.training_helpers import write_data


def load(folder: Path, **changes: int) -> TrainingData:
    """The toy data, 40 images held out."""
    settings = {"validation": 40, "seed": 0, "batch_size": 16} | changes
    return TrainingData.load(f"npz:{write_data(folder)}", data_dir=None, augment=("flip", "crop"), **settings)


def test_held_out(tmp_path: Path) -> None:
    """The first images are held out, and the rest are all trained on, as bytes."""
    data = load(tmp_path)
    everything = torch.from_numpy(np.load(tmp_path / "toy.npz")["image"]).permute(0, 3, 1, 2)
    assert torch.equal(everything[40:], data.x)
    assert torch.equal(everything[:40].float() / 255, data.x_validation)
    assert data.validation == "the first 40 training images, held out"


def test_sorted_data() -> None:
    """Where images are sorted by class, the held-out ones are spread over the classes."""
    labels = np.repeat(np.arange(4), 25)
    chosen = split_validation(labels, 8)
    assert len(set(chosen)) == 8
    assert np.bincount(labels[chosen]).tolist() == [2, 2, 2, 2]


def test_order(tmp_path: Path) -> None:
    """Each epoch has its own permutation, which depends on the seed only."""
    data = load(tmp_path)
    assert sorted(data.order(0).tolist()) == list(range(160))
    assert data.order(0).tolist() != data.order(1).tolist()
    assert torch.equal(data.order(1), load(tmp_path).order(1))
    assert not torch.equal(data.order(1), load(tmp_path, seed=1).order(1))


def test_batch(tmp_path: Path) -> None:
    """A batch is a function of its place, in [0, 1], with the labels of its rows."""
    data, rows = load(tmp_path), torch.arange(16)
    x, y = data.batch(rows, 0, 5)
    assert x.dtype == torch.float32
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert torch.equal(data.y[:16], y)
    assert torch.equal(x, data.batch(rows, 0, 5)[0])
    assert not torch.equal(x, data.batch(rows, 0, 6)[0])


def test_flip() -> None:
    """About half of the images are mirrored, each as a whole."""
    x = torch.arange(400 * 4).reshape(400, 1, 2, 2)
    flipped = random_flip(x, generator_for(0, "test"))
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], x[~mirrored])
    assert 160 < int(mirrored.sum()) < 240


def test_crop() -> None:
    """Each image is moved by at most an eighth of its side, and all such moves occur."""
    x = torch.zeros(500, 2, 8, 8)
    x[:, :, 4, 3] = 1
    moved = random_crop(x, generator_for(0, "test"))
    assert torch.equal(moved[:, 0], moved[:, 1])
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (2, 3, 4)}


def test_too_few(tmp_path: Path) -> None:
    """Too few images for the held-out set and one batch are refused with both numbers."""
    with pytest.raises(SpecError, match="has 200 images; validation = 190 and batch_size = 16 need more"):
        load(tmp_path, validation=190)
