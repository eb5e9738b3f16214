"""Training images: held as bytes, in an order and with augmentations that depend on nothing but the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.data import Dataset, load_data
from robustgen.errors import SpecError

__all__ = ["AUGMENTATIONS", "TrainingData", "generator_for", "random_crop", "random_flip", "split_validation"]

_PAD_SHARE = 8  # random_crop pads by an eighth of the image's side: 4 pixels for 32 x 32


def generator_for(seed: int, purpose: str, *place: int) -> torch.Generator:
    """A CPU generator for one use at one place, such as (epoch, step): resuming there needs no saved state."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{'/'.join(map(str, place))}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def random_flip(x: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror each image (B, C, H, W) left to right with probability 1/2."""
    chosen = torch.rand(len(x), generator=rng) < 0.5
    return torch.where(chosen[:, None, None, None], x.flip(3), x)


def random_crop(x: Tensor, rng: torch.Generator) -> Tensor:
    """Move each image (B, C, H, W) by up to an eighth of its side; black comes in from outside."""
    n, _, height, width = x.shape
    pad = max(1, min(height, width) // _PAD_SHARE)
    padded = F.pad(x, (pad, pad, pad, pad))
    top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=rng)
    rows = top[:, None] + torch.arange(height)  # (B, H)
    columns = left[:, None] + torch.arange(width)  # (B, W)
    image = torch.arange(n)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {"flip": random_flip, "crop": random_crop}


def split_validation(labels: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]], size: int) -> list[int]:
    """The ids held out: the first `size`, or every so many where the data is sorted by class, as folders are."""
    n = len(labels)
    if bool((np.diff(labels) >= 0).all()):
        return [k * n // size for k in range(size)]
    return list(range(size))


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """Images for training and held-out images for validation, on the CPU.

    Args:
        dataset: where they come from.
        x: (N, C, H, W) uint8.
        y: (N,) int64.
        x_validation: (V, C, H, W) float32 in [0, 1]; never trained on.
        y_validation: (V,) int64.
        validation: how the held-out images were chosen, for the card.
        seed: of order and augmentation.
        batch_size: images a step; the remainder of an epoch's order is left out.
        augment: names in `AUGMENTATIONS`, in the order in which they are applied.
    """

    dataset: Dataset
    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor
    validation: str
    seed: int
    batch_size: int
    augment: tuple[str, ...] = ()

    @classmethod
    def load(
        cls, name: str, *, data_dir: Path | None, validation: int, seed: int, batch_size: int, augment: tuple[str, ...]
    ) -> TrainingData:
        """Read the training images of a data set.

        Raises:
            SpecError: fewer images than the validation set and one batch need.
            ArtifactError: the data is missing.
        """
        dataset = load_data(name, data_dir=data_dir, split="train")
        if len(dataset) < validation + batch_size:
            raise SpecError(
                f"{name} has {len(dataset)} images; validation = {validation} and batch_size = {batch_size} "
                "need more; lower one of them in the recipe."
            )
        held_out = split_validation(dataset.labels, validation)
        x_validation, y_validation = dataset.batch(held_out)
        left_out = set(held_out)
        rest = [index for index in range(len(dataset)) if index not in left_out]
        images = torch.from_numpy(np.stack([dataset.read(index) for index in rest])).permute(0, 3, 1, 2)
        first = held_out == list(range(validation))
        return cls(
            dataset=dataset,
            x=images.contiguous(),
            y=torch.from_numpy(dataset.labels[np.asarray(rest)]),
            x_validation=x_validation,
            y_validation=y_validation,
            validation=f"{'the first' if first else 'evenly spaced'} {validation} training images, held out",
            seed=seed,
            batch_size=batch_size,
            augment=augment,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the training images."""
        return len(self.x) // self.batch_size

    def order(self, epoch: int) -> Tensor:
        """(N,) int64, the order of the training images in one epoch."""
        return torch.randperm(len(self.x), generator=generator_for(self.seed, "order", epoch))

    def batch(self, rows: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Augmented images (B, C, H, W) float32 in [0, 1] and labels (B,) of some rows of the training images."""
        x, rng = self.x[rows], generator_for(self.seed, "augment", epoch, step)
        for name in self.augment:
            x = AUGMENTATIONS[name](x, rng)
        return x.float().div(255), self.y[rows]
