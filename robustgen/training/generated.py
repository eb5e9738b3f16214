"""Generated images as training data: which files, which share of a batch, and whether they may be used at all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.classifiers import load_classifier
from robustgen.dataset import Dataset
from robustgen.errors import SpecError
from robustgen.generator.generated import map_generated

__all__ = ["GeneratedSource", "load_sources", "parse_shares"]

log = logging.getLogger(__name__)

_LABEL_ROWS = 500  # images in one forward pass of the classifier that labels them


def parse_shares(text: str | Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Read "a.npz:0.5,b.npz:0.2" or a list of such parts: files, and their shares of every batch.

    Raises:
        SpecError: a part without a share, a share outside (0, 1], or shares whose sum is above 1.
    """
    parts = [part for part in (text.split(",") if isinstance(text, str) else text) if part.strip()]
    found = []
    for part in parts:
        path, colon, share = part.strip().rpartition(":")
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if not colon or not path or not 0 < value <= 1:
            raise SpecError(
                f"generated: expected FILE.npz:SHARE with a share in (0, 1], such as a.npz:0.7, got '{part}'."
            )
        found.append((path, value))
    total = sum(share for _, share in found)
    if total > 1 + 1e-9:
        raise SpecError(
            f"generated: the shares sum to {total:g}; they must not exceed 1, the rest of each batch being real images."
        )
    if len({path for path, _ in found}) < len(found):
        raise SpecError(f"generated: one file is named twice in '{', '.join(parts)}'; add up its shares.")
    return tuple(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedSource:
    """One file of generated images.

    Args:
        path: the file.
        share: of every batch, in (0, 1].
        image: (N, H, W, C) uint8, on the disk where the file allows it.
        label: (N,) int64; None where the file has none.
        provenance: what the file says of itself; empty where it says nothing.
        sha256: of the file.
    """

    path: Path
    share: float
    image: np.ndarray[Any, np.dtype[np.uint8]]
    label: Tensor | None
    provenance: dict[str, Any]
    sha256: str

    def __len__(self) -> int:
        return len(self.image)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8 and labels (B,)."""
        assert self.label is not None  # checked before training
        return torch.from_numpy(self.image[rows.numpy()]).permute(0, 3, 1, 2), self.label[rows]

    def check(self, dataset: Dataset, *, images: int, held_out: int) -> None:
        """Refuse images that do not fit the data set, or whose generator saw more than this training may see.

        Args:
            dataset: the real data.
            images: how many of its images are trained on.
            held_out: how many of its images are held out for validation.

        Raises:
            SpecError: another size or label set, no labels, or a generator that saw test, held-out or further images.
        """
        channels, height, width = dataset.shape
        if tuple(self.image.shape[1:]) != (height, width, channels):
            raise SpecError(
                f"{self.path}: images are {self.image.shape[1:]}, those of {dataset.name} are "
                f"{(height, width, channels)} (height, width, channels)."
            )
        if self.label is None:
            raise SpecError(
                f'{self.path}: has no labels; name a classifier that gives them: labels = "fmnist-standard" in '
                "[generated], or --labels fmnist-standard."
            )
        if int(self.label.max()) >= dataset.classes:
            raise SpecError(
                f"{self.path}: has label {int(self.label.max())}, {dataset.name} has the classes 0 to "
                f"{dataset.classes - 1}."
            )
        self._check_provenance(dataset, images, held_out)

    def _check_provenance(self, dataset: Dataset, images: int, held_out: int) -> None:
        seen = self.provenance.get("trained_on")
        if not isinstance(seen, dict):
            log.warning("%s does not say what its generator was trained on; it is used as it is.", self.path)
            return
        if seen.get("split") != "train":
            raise SpecError(
                f"{self.path}: its generator was trained on the {seen.get('split')} images of {seen.get('data')}; "
                "figures on them would mean nothing. Train a generator on training images."
            )
        if not dataset.name.startswith(str(seen.get("data"))):
            log.warning("%s comes from a generator of %s, not of %s.", self.path, seen.get("data"), dataset.name)
            return
        if seen.get("images", 0) > images:
            raise SpecError(
                f"{self.path}: its generator saw {seen['images']} real images, this training may see {images}; train "
                f"the generator on as many: images = {images} in [data] of its recipe."
            )
        if seen.get("held_out", 0) < held_out:
            raise SpecError(
                f"{self.path}: its generator held out {seen.get('held_out', 0)} images, this training holds out "
                f"{held_out}, so that it saw some of them; use validation = {seen.get('held_out', 0)} or less."
            )


def load_sources(
    shares: Sequence[tuple[str, float]], *, labels: str | None, folder: Path | None = None
) -> tuple[GeneratedSource, ...]:
    """Open the files, and label what has no labels.

    Args:
        shares: from `parse_shares`.
        labels: a classifier that gives pseudo-labels where a file has none; None where all files have them.
        folder: what relative paths begin at; None for the current folder.

    Raises:
        ArtifactError: a file is missing or cannot be read.
        SpecError: it holds something else, or there is no such classifier.
    """
    sources = []
    for name, share in shares:
        path = (folder or Path()) / Path(name).expanduser()
        image, label, provenance = map_generated(path)
        with path.open("rb") as stream:
            digest = sha256()
            while block := stream.read(1 << 22):
                digest.update(block)
        source = GeneratedSource(
            path=path, share=share, image=image, label=label, provenance=provenance, sha256=digest.hexdigest()
        )
        sources.append(source if label is not None or labels is None else _pseudo_labelled(source, labels))
    return tuple(sources)


@torch.no_grad()
def _pseudo_labelled(source: GeneratedSource, name: str) -> GeneratedSource:
    """The classes that a classifier sees in the images."""
    classifier = load_classifier(name)
    found = []
    for rows in torch.arange(len(source)).split(_LABEL_ROWS):
        x = torch.from_numpy(source.image[rows.numpy()]).permute(0, 3, 1, 2).float() / 255
        found.append(classifier(x).argmax(1))
    return replace(source, label=torch.cat(found))
