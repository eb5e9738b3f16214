"""Data: labelled images by name, from a folder, a file or tensors, and the choice of examples."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustgen.corruptions.source import CORRUPTED, PUBLISHED, load_corrupted
from robustgen.dataset import Dataset, Split, data_root
from robustgen.errors import ArtifactError, SpecError, unknown_name
from robustgen.files import impatient, read_folder, read_idx
from robustgen.usercode import first_line

__all__ = ["DATA", "find_data", "load_data", "parse_ids", "pixel_marks"]

DATA = {
    "fmnist-test-1k": "the first 1,000 test images of Fashion-MNIST, 1 x 28 x 28, 10 classes; comes with robustgen",
    "fashion-mnist": "Fashion-MNIST, 1 x 28 x 28, 10 classes, 60,000 training and 10,000 test images",
    "cifar10": "CIFAR-10, 3 x 32 x 32, 10 classes, 50,000 training and 10,000 test images",
    "cifar100": "CIFAR-100, 3 x 32 x 32, 100 classes, 50,000 training and 10,000 test images",
    "corrupted:TYPE:SEVERITY@DATA": "any of these with a common corruption (`robustgen list corruptions`)",
    "cifar10-c:TYPE:SEVERITY": "the published files of CIFAR-10-C; cifar100-c likewise",
    "folder:PATH": "your own images of one size, one sub-folder a class",
    "npz:PATH": "your own NumPy file with image (N, H, W, C) uint8 and label (N,)",
}

_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR = {"cifar10": ("CIFAR10", "cifar-10-batches-py"), "cifar100": ("CIFAR100", "cifar-100-python")}
_EMBEDDED = Path(__file__).resolve().parent / "zoo" / "data" / "fmnist-test-1k.npz"


def load_data(spec: str | tuple[Tensor, Tensor], *, data_dir: Path | None = None, split: Split = "test") -> Dataset:
    """Labelled images by name, or from a folder, a file or tensors.

    Args:
        spec: a name or a form in `DATA`, or tensors: images (N, C, H, W) float in [0, 1] or uint8, and
            integer labels (N,).
        data_dir: where full data sets lie; by default $ROBUSTGEN_DATA, else ~/.cache/robustgen/data.
        split: which part of a named data set; folders, files and tensors are one part, whatever it is called.

    Raises:
        SpecError: nothing of that name, or the images or labels are not what they should be.
        ArtifactError: a file is missing or cannot be read.
    """
    if not isinstance(spec, str):
        return _from_tensors(*spec)
    if spec.startswith((CORRUPTED, *PUBLISHED)):
        return load_corrupted(spec, data_dir, partial(load_data, data_dir=data_dir, split=split))
    if spec.startswith("folder:"):
        labels, shape, class_names, read = read_folder(Path(spec.removeprefix("folder:")).expanduser())
        return Dataset(name=spec, labels=labels, shape=shape, class_names=class_names, read=read)
    if spec.startswith("npz:"):
        return _from_npz(Path(spec.removeprefix("npz:")).expanduser(), spec)
    if spec == "fmnist-test-1k":
        if split != "test":
            raise SpecError("fmnist-test-1k holds test images only; for training use fashion-mnist.")
        return _from_npz(_EMBEDDED, spec, _FASHION)
    root = data_root(data_dir)
    if spec == "fashion-mnist":
        return _fashion_mnist(root, split)
    if spec in _CIFAR:
        return _cifar(spec, root, split)
    raise unknown_name("data", spec, DATA, hint="See `robustgen list data`.")


def find_data(name: str, data_dir: Path | None = None, split: Split = "test") -> Path | None:
    """The file or folder that a named data set would be read from; None where it would have to be downloaded."""
    root = data_root(data_dir)
    if name == "fashion-mnist":
        return next(iter(_fashion_files(root, split)), None)
    places = [_EMBEDDED] if name not in _CIFAR else [root / name / f"{split}.npz", root / _CIFAR[name][1]]
    return next((place for place in places if place.exists()), None)


def parse_ids(text: str | None, n: int | None, size: int, name: str) -> list[int]:
    """The ids of the examples to use, in the order given.

    Args:
        text: such as "0-99,205" (both ends included), or a file with one id or range a line; None for all.
        n: keep the first n of them; None for all.
        size: how many examples the data has.
        name: of the data, for messages.

    Raises:
        SpecError: no list and no such file, an id twice or beyond the data, nothing selected, or fewer than n.
    """
    if n is not None and n < 1:
        raise SpecError(f"--n must be >= 1, got {n}.")
    if text is None:
        if n is not None and n > size:
            raise SpecError(f"{name} has {size} examples; --n {n} asks for more.")
        return list(range(size if n is None else n))
    ids = [index for part in _id_parts(text) for index in _id_range(part, size, name)]
    if not ids:
        raise SpecError(f"--ids '{text}' selects nothing; write for example --ids 0-99,205.")
    if len(set(ids)) < len(ids):
        twice = next(index for index, times in Counter(ids).items() if times > 1)
        raise SpecError(f"--ids names example {twice} twice.")
    if n is not None and n > len(ids):
        raise SpecError(f"--ids selects {len(ids)} examples; --n {n} asks for more.")
    return ids[:n]


def pixel_marks(pictures: Iterable[npt.NDArray[Any]]) -> Tensor:
    """(N,) int64: 64 bits of a hash of each picture's pixels, by which it is known wherever it lies."""
    marks = [hashlib.blake2b(np.ascontiguousarray(picture).tobytes(), digest_size=8).digest() for picture in pictures]
    return torch.tensor([int.from_bytes(mark, "big", signed=True) for mark in marks], dtype=torch.int64)


def _id_parts(text: str) -> list[str]:
    if re.fullmatch(r"[\d\s,-]*", text):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        lines = Path(text).expanduser().read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise SpecError(f"--ids '{text}' is neither a list such as 0-99,205 nor a file.") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"--ids: the file '{text}' cannot be read: {first_line(error)}.") from error
    return [line.strip() for line in lines if line.strip()]


def _id_range(part: str, size: int, name: str) -> range:
    match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
    if match is None:
        raise SpecError(f"--ids: '{part}' is neither an id such as 205 nor a range such as 0-99.")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise SpecError(f"--ids: the range {part} runs backwards; write {last}-{first}.")
    if last >= size:
        raise SpecError(f"--ids: example {last} does not exist; {name} has the ids 0 to {size - 1}.")
    return range(first, last + 1)


def _from_arrays(
    name: str, images: npt.NDArray[Any], labels: npt.NDArray[Any], class_names: tuple[str, ...] = ()
) -> Dataset:
    """Check images (N, H, W, C) and labels (N,), and make them a data set."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        advice = "; for one-hot rows use argmax(1)" if labels.ndim == 2 else ""
        raise SpecError(f"{name}: labels must be whole numbers (N,), got {labels.shape} of {labels.dtype}{advice}.")
    if len(images) != len(labels):
        raise SpecError(f"{name}: {len(images)} images, but {len(labels)} labels.")
    if images.size == 0:
        raise SpecError(f"{name}: holds no images, shape {images.shape}.")
    if labels.min() < 0:
        raise SpecError(f"{name}: label {labels.min()} of example {labels.argmin()} is negative; classes count from 0.")
    class_names = class_names or tuple(str(k) for k in range(int(labels.max()) + 1))
    if labels.max() >= len(class_names):
        raise SpecError(
            f"{name}: label {labels.max()} of example {labels.argmax()} is not in 0 .. {len(class_names) - 1}."
        )
    height, width, channels = images.shape[1:]
    return Dataset(
        name=name,
        labels=labels.astype(np.int64),
        shape=(channels, height, width),
        class_names=class_names,
        read=images.__getitem__,
    )


def _from_tensors(x: Tensor, y: Tensor) -> Dataset:
    if x.ndim != 4:
        advice = "; for grey images give x[:, None]" if x.ndim == 3 else ""
        raise SpecError(f"images must have the shape (N, C, H, W), got {tuple(x.shape)}{advice}.")
    if x.dtype != torch.uint8:
        if not x.is_floating_point():
            raise SpecError(f"images must be floating point in [0, 1] or uint8, got {x.dtype}.")
        if not bool(x.isfinite().all()):
            raise SpecError("images must be numbers in [0, 1], got NaN or infinite pixels.")
        low, high = (float(x.min()), float(x.max())) if x.numel() else (0.0, 0.0)
        if low < 0 or high > 1:
            advice = "undo the normalisation" if low < 0 else "divide by 255?"
            raise SpecError(f"images must lie in [0, 1], got values from {low:g} to {high:g}: {advice}")
        x = x.float()
    images = x.detach().cpu().permute(0, 2, 3, 1).contiguous().clone().numpy()
    return _from_arrays("tensors", images, y.detach().cpu().numpy())


def _from_npz(path: Path, name: str, class_names: tuple[str, ...] = ()) -> Dataset:
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise SpecError(f"{path}: one bare array; save it with np.savez(FILE, image=..., label=...).")
            for key in ("image", "label"):
                if key not in file:
                    raise SpecError(f"{path}: lacks the array '{key}'; it holds {', '.join(file) or 'nothing'}.")
            images, labels = file["image"], file["label"]
    except FileNotFoundError:
        raise ArtifactError(f"{path}: there is no such file.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path}: cannot be read as an .npz of plain arrays: {first_line(error)}.") from error
    if images.dtype != np.uint8:
        raise SpecError(f"{path}: image must be uint8 in 0 .. 255, got {images.dtype}.")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise SpecError(f"{path}: image must have the shape (N, H, W, C) or (N, H, W), got {images.shape}.")
    if images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        raise SpecError(f"{path}: image looks like (N, C, H, W), got {images.shape}; use transpose(0, 2, 3, 1).")
    return _from_arrays(name, images, labels, class_names)


def _fashion_files(root: Path, split: Split) -> list[Path]:
    """The files of images and labels, or none."""
    for folder in (root / "fashion-mnist", root / "FashionMNIST" / "raw"):
        for suffix in ("", ".gz"):
            paths = [folder / f"{name}{suffix}" for name in _fashion_names(split)]
            if all(path.is_file() for path in paths):
                return paths
    return []


def _fashion_names(split: Split) -> tuple[str, str]:
    stem = "train" if split == "train" else "t10k"
    return f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"


def _fashion_mnist(root: Path, split: Split) -> Dataset:
    paths = _fashion_files(root, split)
    if not paths:
        names = _fashion_names(split)
        _download("FashionMNIST", root, f"fashion-mnist/{names[0]}.gz and {names[1]}.gz")
        paths = _fashion_files(root, split)  # torchvision has checked what it wrote
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    return _from_arrays(_part("fashion-mnist", split), images[..., None], labels, _FASHION)


def _cifar(spec: str, root: Path, split: Split) -> Dataset:
    kind, folder = _CIFAR[spec]
    name, path = _part(spec, split), root / spec / f"{split}.npz"
    if path.is_file():
        return _from_npz(path, name, _CIFAR10 if spec == "cifar10" else ())
    import torchvision  # here, not above: slow to import, and seldom needed

    if not (root / folder).is_dir():
        _download(kind, root, f"{spec}/{split}.npz or {folder}/")
    try:
        data = getattr(torchvision.datasets, kind)(str(root), train=split == "train")  # verifies the published MD5 sums
    except (RuntimeError, OSError) as error:
        raise ArtifactError(f"{root / folder}: damaged: {first_line(error)}; remove it.") from error
    class_names = _CIFAR10 if spec == "cifar10" else tuple(data.classes)
    return _from_arrays(name, data.data, np.asarray(data.targets), class_names)


def _part(name: str, split: Split) -> str:
    return name if split == "test" else f"{name}-{split}"


def _download(dataset: str, root: Path, expected: str) -> None:
    """Let torchvision download and check a data set, and put it into a folder only when it is whole."""
    import torchvision  # here, not above: slow to import, and seldom needed

    try:
        with tempfile.TemporaryDirectory() as folder:
            with impatient(), contextlib.redirect_stdout(sys.stderr):
                getattr(torchvision.datasets, dataset)(folder, download=True)
            copytree(folder, root, dirs_exist_ok=True)
    except Exception as error:  # no network, no space, no permission: for the user it is all the same
        reason = " ".join(str(error).split())  # torchvision lists the mirrors that it tried, one a line
        raise ArtifactError(
            f"no {dataset} in {root}: expected {expected}, and the download failed ({reason}). "
            f"Where there is a network run `python -c \"import torchvision; torchvision.datasets.{dataset}('DIR', "
            'download=True)"`, then pass --data-dir DIR.'
        ) from error
