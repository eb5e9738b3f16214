"""Images as whole arrays of bytes: those of a generator from its file, and those of a data set."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustgen.dataset import Dataset
from robustgen.errors import ArtifactError, SpecError
from robustgen.usercode import first_line

__all__ = ["map_generated", "read_generated", "read_images"]


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
    image, label, _ = map_generated(path)
    return torch.from_numpy(np.array(image)), label


def map_generated(path: Path) -> tuple[npt.NDArray[np.uint8], Tensor | None, dict[str, Any]]:
    """The same with the images left on the disk, where the file is not compressed; and what it says of its origin.

    Returns:
        the images as an array that is read when asked, labels or None, and the provenance, empty where there is none.

    Raises:
        SpecError, ArtifactError: as `read_generated`.
    """
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise SpecError(f"{path}: one bare array; save it with np.savez(FILE, image=..., label=...).")
            if "image" not in file:
                raise SpecError(f"{path}: lacks the array 'image'; it holds {', '.join(file) or 'nothing'}.")
            mapped = _mapped(path, "image.npy")
            image, label = file["image"] if mapped is None else mapped, file.get("label")
            said = json.loads(str(file["provenance"])) if "provenance" in file else {}
    except FileNotFoundError:
        raise ArtifactError(f"{path}: there is no such file.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path}: cannot be read as an .npz of plain arrays: {first_line(error)}.") from error
    image = _checked(path, image)
    provenance = said if isinstance(said, dict) else {}
    return image, None if label is None else _labels(path, label, len(image)), provenance


def _mapped(path: Path, member: str) -> npt.NDArray[Any] | None:
    """A member of an .npz as a memory map; None where it is compressed, or in Fortran order."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        entry = archive.getinfo(member)
        if entry.compress_type != zipfile.ZIP_STORED:
            return None
        stream.seek(entry.header_offset + 26)  # two lengths of the local header, whose extra field is its own
        name, extra = (int.from_bytes(stream.read(2), "little") for _ in range(2))
        stream.seek(entry.header_offset + 30 + name + extra)
        if np.lib.format.read_magic(stream) != (1, 0):
            return None
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if fortran or dtype.hasobject:
            return None
        return np.memmap(path, dtype=dtype, mode="r", offset=stream.tell(), shape=shape)


def _checked(path: Path, image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """(N, H, W, C) uint8, or an error that says what to do."""
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
    return image


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
