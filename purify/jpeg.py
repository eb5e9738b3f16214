"""JPEG compression as a defence."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser
from robustgen.purify.base import Chain, Sanitiser, register_purifier, single_step, straight_through
from robustgen.rng import ExampleRng

__all__ = ["Jpeg"]


@register_purifier("jpeg")
@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg(Sanitiser):
    """Compress as JPEG and decompress, by Pillow's codec.

    Source: Guo et al. 2018, arXiv:1711.00117. The gradient goes straight through.
    Under attack: falls to BPDA (Athalye et al. 2018, arXiv:1802.00420).

    Args:
        quality: 1 to 100.
    """

    quality: int = 75

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise SpecError(f"jpeg: quality must be 1 to 100, got {self.quality}.")

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """One step."""
        return single_step(lambda x: straight_through(x, self.compress(x)))

    def compress(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1], C of 1 or 3, through 8 bits and the codec."""
        if x.shape[1] not in (1, 3):
            raise SpecError(f"jpeg: images have 1 or 3 channels, got {x.shape[1]}.")
        pixels = (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
        out = np.stack([self._codec(image) for image in pixels])
        return torch.from_numpy(out).to(x).permute(0, 3, 1, 2) / 255

    def _codec(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(H, W, C) uint8 -> the same."""
        held = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(held, "JPEG", quality=self.quality)
        with Image.open(held) as read:
            return np.asarray(read).reshape(image.shape)
