"""What data is: labelled images by id, read when they are needed; and where full data sets lie."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Dataset", "Split", "data_root"]

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Labelled images; an example's id is its place, from 0.

    Args:
        name: what tables and records call it.
        labels: (N,) int64, 0 <= label < number of classes.
        shape: (C, H, W) of every image.
        class_names: one a class.
        read: id to raw image, (H, W, C) uint8 in 0 .. 255 or float32 in [0, 1]; called only when an image is needed.
    """

    name: str
    labels: npt.NDArray[np.int64]
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    read: Callable[[int], npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) float32 in [0, 1] and labels (B,) int64 of some ids, in the order given."""
        raw = (
            torch.from_numpy(np.stack([self.read(index) for index in indices]))
            .permute(0, 3, 1, 2)
            .clone(memory_format=torch.contiguous_format)
        )
        images = raw.float().div(255) if raw.dtype == torch.uint8 else raw
        return images, torch.from_numpy(self.labels[np.asarray(indices)])

    def digest(self, indices: Sequence[int]) -> str:
        """SHA-256 over id, label and raw (H, W, C) bytes of some examples, in the order given."""
        digest = hashlib.sha256()
        for index in indices:
            digest.update(struct.pack("<qq", index, self.labels[index]))
            digest.update(np.ascontiguousarray(self.read(index)).tobytes())
        return digest.hexdigest()


def data_root(data_dir: Path | None) -> Path:
    """Where full data sets lie: as given, else $ROBUSTGEN_DATA, else ~/.cache/robustgen/data."""
    return (data_dir or Path(os.environ.get("ROBUSTGEN_DATA") or "~/.cache/robustgen/data")).expanduser()
