"""Adversarial images from elsewhere: the witnesses of a run, or a tensor file as RobustBench asks for it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustgen.errors import ArtifactError, RecordError, SpecError
from robustgen.witnesses import read_witnesses

__all__ = ["Adversarials"]


@dataclass(frozen=True, slots=True)
class Adversarials:
    """Images by example id.

    Attributes:
        images: example id -> (C, H, W) float32; NaN and values beyond [0, 1] are kept, for the judge to refuse.
        digest: sha256 over ids and pixels, which is what a protocol string says of them.
    """

    images: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)
    digest: str = "none"

    def protocol(self, classes: int) -> str:
        """How a protocol string names them."""
        return self.digest[:16]

    def of(self, ids: Sequence[int], x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) on the device of x, and (B,) bool whether there is a finite one; zeros where not.

        Raises:
            SpecError: no images at all, or another shape than x.
        """
        if not self.images:
            raise SpecError("replay: name where the images are, as in replay:source=RUN or replay:source=FILE.pt.")
        shape = next(iter(self.images.values())).shape
        if shape != x.shape[1:]:
            raise SpecError(f"the adversarial images are {tuple(shape)}, those of the data {tuple(x.shape[1:])}.")
        blank = torch.full_like(x[0], torch.nan, device="cpu")
        images = torch.stack([self.images.get(id_, blank).float() for id_ in ids]).to(x)
        held = images.flatten(1).isfinite().all(1)
        return images.nan_to_num(0.0), held

    @classmethod
    def parse(cls, text: str) -> Adversarials:
        """The witnesses of a run folder, or the rows of a tensor file, row k being example k.

        Raises:
            ArtifactError, RecordError, SpecError: nothing there, or nothing that can be used.
        """
        if text == cls().digest:
            return cls()
        path = Path(text)
        return cls.of_run(path) if path.is_dir() else cls.of_tensor(read_tensor(path), None)

    @classmethod
    def of_run(cls, run: Path) -> Adversarials:
        """The witnesses of a finished run."""
        if not (run / "record.json").is_file():
            raise RecordError(f"{run} is not a finished run (no record.json).")
        return cls._hashed(dict(read_witnesses(run)))

    @classmethod
    def of_tensor(cls, images: Tensor, ids: Sequence[int] | None) -> Adversarials:
        """Rows of (N, C, H, W) for these ids, or for 0, 1, ..."""
        rows = range(len(images)) if ids is None else ids
        return cls._hashed(dict(zip(rows, images, strict=True)))

    @classmethod
    def _hashed(cls, images: dict[int, Tensor]) -> Adversarials:
        digest = hashlib.sha256()
        for id_ in sorted(images):
            digest.update(f"{id_}:".encode() + images[id_].float().contiguous().numpy().tobytes())
        return cls(images, digest.hexdigest())


def read_tensor(path: Path) -> Tensor:
    """(N, C, H, W) float32 from a .pt, .npy or .safetensors file; bytes are divided by 255.

    Of a .pt file with several tensors the first that has four dimensions counts; pickled code is never run.

    Raises:
        ArtifactError: no such file, or it cannot be read without running code.
        SpecError: no tensor of four dimensions.
    """
    if not path.is_file():
        raise ArtifactError(f"--adversarials: there is no file {path}.")
    try:
        held = _load(path)
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"--adversarials: {path} cannot be read as tensors ({reason}).") from None
    parts = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else [held]
    for part in parts:
        if isinstance(part, Tensor) and part.dim() == 4:
            return part.float() / 255 if part.dtype == torch.uint8 else part.float()
    raise SpecError(f"--adversarials: {path} holds no tensor (N, C, H, W).")


def _load(path: Path) -> object:
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False))
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
