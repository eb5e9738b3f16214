"""Training images: real and generated ones held as bytes, in an order that depends on nothing but the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustgen.data import load_data
from robustgen.dataset import Dataset
from robustgen.errors import SpecError
from robustgen.rng import generator_for
from robustgen.training.augment import AUGMENTATIONS, MIXES
from robustgen.training.generated import GeneratedSource

__all__ = ["TrainingData", "split_validation"]


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
        dataset: where the real ones come from.
        x: (N, C, H, W) uint8, the real ones.
        y: (N,) int64.
        x_validation: (V, C, H, W) float32 in [0, 1]; never trained on.
        y_validation: (V,) int64.
        validation: how the held-out images were chosen, for the card.
        seed: of order, choice and augmentation.
        batch_size: images a step.
        augment: names in `AUGMENTATIONS` and `MIXES`, in the order in which they are applied.
        generated: sources of generated images, each with its share of every batch; the rest is real.
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
    generated: tuple[GeneratedSource, ...] = ()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        data_dir: Path | None,
        validation: int,
        seed: int,
        batch_size: int,
        augment: tuple[str, ...],
        images: int | None = None,
        generated: tuple[GeneratedSource, ...] = (),
    ) -> TrainingData:
        """Read the training images of a data set.

        Args:
            name, data_dir: as for `load_data`.
            validation: number held out.
            images: how many of the others are used; None for all.
            seed, batch_size, augment, generated: see the class.

        Raises:
            SpecError: fewer images than asked for, or generated ones that do not fit.
            ArtifactError: the data is missing.
        """
        dataset = load_data(name, data_dir=data_dir, split="train")
        wanted = batch_size if images is None else images
        if len(dataset) < validation + wanted:
            asked = f"batch_size = {batch_size}" if images is None else f"images = {images}"
            raise SpecError(
                f"{name} has {len(dataset)} images; validation = {validation} and {asked} "
                "need more; lower one of them in the recipe."
            )
        held_out = split_validation(dataset.labels, validation)
        x_validation, y_validation = dataset.batch(held_out)
        left_out = set(held_out)
        rest = [index for index in range(len(dataset)) if index not in left_out]
        if images is not None:
            rest = [rest[k] for k in split_validation(dataset.labels[np.asarray(rest)], images)]
        pixels = torch.from_numpy(np.stack([dataset.read(index) for index in rest])).permute(0, 3, 1, 2)
        for source in generated:
            source.check(dataset, images=len(rest), held_out=validation)
        first = held_out == list(range(validation))
        return cls(
            dataset=dataset,
            x=pixels.contiguous(),
            y=torch.from_numpy(dataset.labels[np.asarray(rest)]),
            x_validation=x_validation,
            y_validation=y_validation,
            validation=f"{'the first' if first else 'evenly spaced'} {validation} training images, held out",
            seed=seed,
            batch_size=batch_size,
            augment=augment,
            generated=generated,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch: one pass over the real images, the held-out ones included, whatever the mix.

        Source: Wang et al. 2023, arXiv:2302.04638: generated images cost no extra time, they replace real ones.
        """
        return math.ceil((len(self.x) + len(self.x_validation)) / self.batch_size)

    @property
    def generated_rows(self) -> tuple[int, ...]:
        """Generated images in each batch, one number a source."""
        return tuple(int(source.share * self.batch_size) for source in self.generated)

    def order(self, epoch: int) -> Tensor:
        """(N,) int64, the order of the real images in one epoch."""
        return torch.randperm(len(self.x), generator=generator_for(self.seed, "order", epoch))

    def rows(self, epoch: int, step: int, order: Tensor) -> Tensor:
        """(B,) int64, the images of one step of an epoch, in random order.

        Rows below N are real ones, taken in turn from `order`, from its beginning again where it ends; rows from N on
        are generated ones, source after source, drawn with replacement.

        Args:
            epoch: from 0.
            step: within the epoch, from 0.
            order: of that epoch, from `order`.
        """
        real = self.batch_size - sum(self.generated_rows)
        parts = [order[torch.arange(step * real, (step + 1) * real) % len(order)]]
        if not self.generated:
            return parts[0]
        rng, offset = generator_for(self.seed, "generated", epoch, step), len(self.x)
        for source, count in zip(self.generated, self.generated_rows, strict=True):
            parts.append(offset + torch.randint(len(source), (count,), generator=rng))
            offset += len(source)
        rows = torch.cat(parts)
        return rows[torch.randperm(len(rows), generator=rng)]

    def batch(self, rows: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Augmented images of some rows, and their labels.

        Returns:
            (B, C, H, W) float32 in [0, 1], and (B,) int64, or (B, K) probabilities where an augmentation mixes images.
        """
        (x, y), rng = self._read(rows), generator_for(self.seed, "augment", epoch, step)
        for name in self.augment:
            if name in MIXES:
                x, y = MIXES[name](x, y, self.dataset.classes, rng)
            else:
                x = AUGMENTATIONS[name](x, rng)
        return x.float().div(255), y

    def _read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8 and labels (B,) of some rows, wherever they lie."""
        if not self.generated:
            return self.x[rows], self.y[rows]
        x = torch.empty(len(rows), *self.x.shape[1:], dtype=torch.uint8)
        y, real = torch.empty(len(rows), dtype=torch.int64), rows < len(self.x)
        x[real], y[real] = self.x[rows[real]], self.y[rows[real]]
        first = len(self.x)
        for source in self.generated:
            mine = (rows >= first) & (rows < first + len(source))
            x[mine], y[mine] = source.read(rows[mine] - first)
            first += len(source)
        return x, y
