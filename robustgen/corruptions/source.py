"""Corrupted images as data sets by name, so that every command takes them: drawn here, or the published files.

corrupted:TYPE:SEVERITY@DATA          drawn from any data set, such as corrupted:fog:3@fmnist-test-1k
corrupted:TYPE:SEVERITY:SEED@DATA     by another seed than 0
cifar10-c:TYPE:SEVERITY               of the published files, CIFAR-10-C/TYPE.npy and labels.npy; also cifar100-c
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from robustgen.corruptions.kinds import check_severity, corrupt, corruption_of
from robustgen.dataset import Dataset, data_root
from robustgen.errors import ArtifactError, SpecError
from robustgen.rng import ExampleRng
from robustgen.usercode import first_line

__all__ = ["CORRUPTED", "PUBLISHED", "load_corrupted"]

CORRUPTED = "corrupted:"
PUBLISHED = {"cifar10-c:": ("CIFAR-10-C", 10, "2535967"), "cifar100-c:": ("CIFAR-100-C", 100, "3555552")}
"""Prefix -> folder of the files, classes, number of the record on Zenodo that holds them."""
_BLOCK = 64  # images drawn at once


def load_corrupted(spec: str, data_dir: Path | None, load: Callable[[str], Dataset]) -> Dataset:
    """A data set of one corruption and severity; labels and ids are those of the data beneath.

    Args:
        spec: as typed.
        data_dir: where full data sets lie, as for `load_data`.
        load: a data set by name, for the data beneath.

    Raises:
        SpecError: a name of another form, or an unknown corruption, severity or data set.
        ArtifactError: a file is missing or not what it should be.
    """
    match = re.fullmatch(r"(\w[\w-]*):(\w+):(\d+)(?::(\d+))?(?:@(.+))?", spec)
    drawn = spec.startswith(CORRUPTED)
    if match is None or drawn != bool(match[5]) or (match[4] and not drawn):
        form = "corrupted:TYPE:SEVERITY@DATA" if drawn else f"{spec.partition(':')[0]}:TYPE:SEVERITY"
        raise SpecError(f"data '{spec}' must be {form}, with a severity from 1 to 5.")
    name, severity = corruption_of(match[2]).name, check_severity(int(match[3]))
    if not drawn:
        return _published(spec, name, severity, data_root(data_dir))
    base = load(match[5])
    if base.shape[0] not in (1, 3):
        raise SpecError(f"{spec}: corruptions are for images of 1 or 3 channels, {base.name} has {base.shape[0]}.")
    read = _Drawn(base, name, severity, int(match[4] or 0))
    return Dataset(name=spec, labels=base.labels, shape=base.shape, class_names=base.class_names, read=read)


class _Drawn:
    """Id -> corrupted image (H, W, C) uint8, drawn in blocks and kept."""

    def __init__(self, base: Dataset, name: str, severity: int, seed: int) -> None:
        self.base, self.name, self.severity, self.seed = base, name, severity, seed
        self.blocks: dict[int, npt.NDArray[np.uint8]] = {}
        ExampleRng.of(seed, [0])  # refuses a seed that is too large

    def __call__(self, index: int) -> npt.NDArray[Any]:
        block, row = divmod(int(index) % len(self.base), _BLOCK)
        if block not in self.blocks:
            ids = range(block * _BLOCK, min((block + 1) * _BLOCK, len(self.base)))
            x = corrupt(self.base.batch(ids)[0], self.name, self.severity, ExampleRng.of(self.seed, ids))
            self.blocks[block] = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        image: npt.NDArray[np.uint8] = self.blocks[block][row]
        return image


def _published(spec: str, name: str, severity: int, root: Path) -> Dataset:
    """The rows of one severity of CIFAR-10-C or CIFAR-100-C; the files are read where they lie."""
    folder_name, classes, record = PUBLISHED[f"{spec.partition(':')[0]}:"]
    folder = root if (root / "labels.npy").is_file() else root / folder_name
    arrays = []
    for path in (folder / f"{name}.npy", folder / "labels.npy"):
        try:
            arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:
            raise ArtifactError(
                f"{spec}: there is no {path}; get {folder_name}.tar from https://zenodo.org/records/{record}, unpack "
                "it, and name the folder that it lies in with --data-dir."
            ) from None
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"{path}: cannot be read as a plain array: {first_line(error)}.") from error
    images, labels = arrays
    rows = len(labels) // 5
    if images.shape != (5 * rows, 32, 32, 3) or images.dtype != np.uint8 or labels.shape != (5 * rows,) or not rows:
        raise ArtifactError(
            f"{folder / name}.npy: expected (5 n, 32, 32, 3) uint8 beside (5 n,) labels, got {images.shape} "
            f"{images.dtype} and {labels.shape}."
        )
    part = slice((severity - 1) * rows, severity * rows)
    held = np.asarray(labels[part], np.int64)
    if held.min() < 0 or held.max() >= classes:
        raise ArtifactError(
            f"{folder / 'labels.npy'}: labels are 0 to {classes - 1}, got {held.min()} to {held.max()}."
        )
    names = tuple(map(str, range(classes)))
    return Dataset(name=spec, labels=held, shape=(3, 32, 32), class_names=names, read=images[part].__getitem__)
