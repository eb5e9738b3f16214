"""Training images: which are held out, their order, and augmentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustgen.classifiers import load_classifier
from robustgen.errors import SpecError
from robustgen.rng import generator_for
from robustgen.training.augment import AUGMENTATIONS, cutmix, cutout, random_crop, random_flip
from robustgen.training.data import TrainingData, split_validation
from robustgen.training.generated import load_sources, parse_shares
from tests.helpers import assert_global_rng_untouched
from tests.training_helpers import write_data, write_generated


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


def mixed(folder: Path, *parts: tuple[Path, float], labels: str | None = None, **changes: Any) -> TrainingData:
    """The toy data with generated images."""
    settings: dict[str, Any] = {"validation": 40, "seed": 0, "batch_size": 16, "augment": ()} | changes
    sources = load_sources([(str(path), share) for path, share in parts], labels=labels)
    return TrainingData.load(f"npz:{write_data(folder)}", data_dir=None, generated=sources, **settings)


def test_mixture(tmp_path: Path) -> None:
    """Each batch has int(share x size) images of each source; an epoch is as long as without, real images in turn."""
    data = mixed(tmp_path, (write_generated(tmp_path), 0.5), (write_generated(tmp_path, "b.npz", n=7), 0.2))
    assert data.generated_rows == (8, 3)
    assert data.steps_per_epoch == mixed(tmp_path).steps_per_epoch == 13  # 200 / 16, rounded up
    order, seen = data.order(0), []
    for step in range(data.steps_per_epoch):
        rows = data.rows(0, step, order)
        assert [int(((rows >= a) & (rows < b)).sum()) for a, b in ((0, 160), (160, 210), (210, 217))] == [5, 8, 3]
        x, y = data.batch(rows, 0, step)
        assert torch.equal(x.flatten(1).amin(1) > 0.97, rows >= 160)
        assert torch.equal(y[rows < 160], data.y[rows[rows < 160]])
        seen += rows[rows < 160].tolist()
    assert sorted(seen) == sorted(order[:65].tolist())
    assert torch.equal(data.rows(0, 3, order), data.rows(0, 3, order))
    assert not torch.equal(data.rows(0, 3, order), data.rows(0, 4, order))


def test_order_begins_again(tmp_path: Path) -> None:
    """The last batch of an epoch is whole: where the images end, the order begins again."""
    data = mixed(tmp_path)
    order = data.order(0)
    rows = torch.cat([data.rows(0, step, order) for step in range(data.steps_per_epoch)])
    assert rows.tolist() == (order.tolist() + order.tolist())[: 13 * 16]


def test_subset(tmp_path: Path) -> None:
    """`images` takes the first ones after the held-out ones, and the epoch shrinks with them."""
    data = mixed(tmp_path, images=40)
    assert torch.equal(data.x, mixed(tmp_path).x[:40])
    assert data.steps_per_epoch == 5
    with pytest.raises(SpecError, match=r"has 200 images; validation = 40 and images = 161 need more"):
        mixed(tmp_path, images=161)


def test_pseudo_labels(tmp_path: Path) -> None:
    """A file without labels gets those of a classifier, and without one is refused."""
    path = tmp_path / "none.npz"
    np.savez(path, image=np.random.default_rng(0).integers(0, 256, (6, 28, 28, 1), dtype=np.uint8))
    (source,) = load_sources([(str(path), 0.5)], labels="fmnist-standard")
    assert source.label is not None
    with torch.no_grad():
        expected = load_classifier("fmnist-standard")(
            torch.from_numpy(np.load(path)["image"]).permute(0, 3, 1, 2) / 255
        )
    assert torch.equal(expected.argmax(1), source.label)
    with pytest.raises(SpecError, match=r"has no labels; name a classifier that gives them"):
        mixed(tmp_path, (write_generated(tmp_path, label=None), 0.5))


SEEN = {"data": "npz", "split": "train", "images": 160, "held_out": 40}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": np.zeros((9, 8, 4, 1), np.uint8), "label": np.zeros(9, int)},
            r"\(8, 4, 1\), those of .* \(8, 8, 1\)",
        ),
        ({"image": np.zeros((9, 8, 8, 3), np.uint8), "label": np.zeros(9, int)}, r"\(8, 8, 3\), those of"),
        (
            {"image": np.zeros((9, 8, 8, 1)), "label": np.zeros(9, int)},
            r"image must be uint8 in 0 \.\. 255, got float64",
        ),
        ({"label": np.arange(50) % 3}, r"has label 2, .* has the classes 0 to 1"),
        ({"seen": SEEN | {"split": "test"}}, r"its generator was trained on the test images"),
        ({"seen": SEEN | {"images": 161}}, r"its generator saw 161 real images, this training may see 160; train"),
        ({"seen": SEEN | {"held_out": 30}}, r"its generator held out 30 images, this training holds out 40"),
    ],
)
def test_what_may_not_be_trained_on(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Images that do not fit, and generators that saw what they must not, are refused with a sentence."""
    if "seen" in changes:
        changes = {"provenance": json.dumps({"trained_on": changes["seen"]})}
    with pytest.raises(SpecError, match=message):
        mixed(tmp_path, (write_generated(tmp_path, **changes), 0.5))


def test_unknown_origin_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that does not say where it comes from is used, with a warning."""
    mixed(tmp_path, (write_generated(tmp_path, provenance=None), 0.5))
    assert "does not say what its generator was trained on" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.npz", r"expected FILE\.npz:SHARE with a share in \(0, 1\], such as a\.npz:0\.7, got 'a\.npz'"),
        ("a.npz:0", r"expected FILE\.npz:SHARE"),
        ("a.npz:0.8,b.npz:0.4", r"the shares sum to 1\.2; they must not exceed 1"),
        ("a.npz:0.3,a.npz:0.4", r"one file is named twice"),
    ],
)
def test_wrong_shares(text: str, message: str) -> None:
    """Each mistake is one sentence."""
    with pytest.raises(SpecError, match=message):
        parse_shares(text)


def test_shares() -> None:
    """Files and shares, as typed; a path may have a colon."""
    assert parse_shares("a.npz:0.5, b:c.npz:0.2") == (("a.npz", 0.5), ("b:c.npz", 0.2))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation(name: str, channels: int) -> None:
    """Every augmentation keeps shape and dtype, changes something, and is a function of its generator."""
    x = torch.randint(1, 256, (6, channels, 12, 10), dtype=torch.uint8, generator=generator_for(0, "test"))
    with assert_global_rng_untouched():
        once, again = (AUGMENTATIONS[name](x, generator_for(1, "augment")) for _ in range(2))
    assert once.dtype == torch.uint8
    assert once.shape == x.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, x)


def test_cutout() -> None:
    """What is black is one rectangle of at most half the side; the rest is as it was."""
    x = torch.full((200, 1, 12, 12), 9, dtype=torch.uint8)
    black = cutout(x, generator_for(0, "cut")) == 0
    rows, columns = black.any(3).sum(2), black.any(2).sum(2)
    assert torch.equal(rows * columns, black.sum((2, 3)))
    assert int(rows.max()) == int(columns.max()) == 6
    assert int(rows.min()) >= 3


def test_cutmix() -> None:
    """Labels are mixed by the share of pixels that come from the other image."""
    x = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 1, 10, 14).contiguous()
    mixed_x, y = cutmix(x, torch.arange(8), 8, generator_for(0, "mix"))
    for row in range(8):
        expected = torch.bincount(mixed_x[row].flatten().long(), minlength=8) / 140
        torch.testing.assert_close(y[row], expected)
    assert 0.3 < float((mixed_x != x).float().mean()) < 0.6  # 1/2 on average, less what the border cuts off
