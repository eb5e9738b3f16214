"""Images as whole arrays of bytes: those of a generator from its file, and those of a data set."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustgen.data import Dataset
from robustgen.errors import ArtifactError, SpecError
from robustgen.usercode import first_line

__all__ = ["read_generated", "read_images"]


def read_images(dataset: Dataset) -> Tensor:
    """All images of a data set as (N, H, W, C) uint8; floats in [0, 1] are rounded to 255 steps."""
    raw = torch.from_numpy(np.stack([dataset.read(index) for index in range(len(dataset))]))
    return raw if raw.dtype == torch.uint8 else (raw * 255).round().to(torch.uint8)


def read_generated(path: Path) -> tuple[Tensor, Tensor | None]:
    """Images (N, H, W, C) uint8 and labels (N,) int64 of an .npz as `robustgen generator sample` writes it.

    Labels are None where the file has none, or where all of them are -1.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        SpecError: it holds something else.
    """
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise SpecError(f"{path}: one bare array; save it with np.savez(FILE, image=..., label=...).")
            if "image" not in file:
                raise SpecError(f"{path}: lacks the array 'image'; it holds {', '.join(file) or 'nothing'}.")
            image, label = file["image"], file.get("label")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: there is no such file.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path}: cannot be read as an .npz of plain arrays: {first_line(error)}.") from error
    if image.dtype != np.uint8:
        advice = ": save round(255 x) of images x in [0, 1]" if image.dtype.kind == "f" else ""
        raise SpecError(f"{path}: image must be uint8 in 0 .. 255, got {image.dtype}{advice}.")
    image = image[..., None] if image.ndim == 3 else image
    if image.ndim != 4 or not image.size:
        raise SpecError(f"{path}: image must have the shape (N, H, W, C) or (N, H, W), N >= 1, got {image.shape}.")
    if image.shape[3] not in (1, 3):
        turned = image.shape[1] in (1, 3)
        advice = "looks like (N, C, H, W); use transpose(0, 2, 3, 1)" if turned else "must have 1 or 3 channels, last"
        raise SpecError(f"{path}: image {advice}, got {image.shape}.")
    return torch.from_numpy(image), None if label is None else _labels(path, label, len(image))


def _labels(path: Path, label: npt.NDArray[Any], n: int) -> Tensor | None:
    if label.ndim != 1 or label.dtype.kind not in "iu":
        advice = "; for one-hot rows use argmax(1)" if label.ndim == 2 else ""
        raise SpecError(f"{path}: label must be whole numbers (N,), got {label.shape} of {label.dtype}{advice}.")
    if len(label) != n:
        raise SpecError(f"{path}: {n} images, but {len(label)} labels.")
    if bool((label == -1).all()):
        return None
    if label.min() < 0:
        raise SpecError(
            f"{path}: label {label.min()} of image {label.argmin()} is negative; classes count from 0, and a file "
            "without classes has no label, or -1 everywhere."
        )
    return torch.from_numpy(label.astype(np.int64))
