"""The outline of a patch: a square, a circle, or what an image shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.files import read_image

__all__ = ["make_mask", "parse_size"]


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels of "8" or "6x10".

    Raises:
        SpecError: not of that form, or without a pixel.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(height, width) < 1:
        raise SpecError(f"--size must be a side in pixels such as 8, or HxW such as 6x10, got '{text}'.")
    return height, width


def make_mask(shape: str, size: tuple[int, int]) -> Tensor:
    """(1, h, w) float32 of 0 and 1.

    Args:
        shape: "square" for all of it; "circle" for the ellipse that touches its edges; or an image file, 1 where it is
            at least half bright, resized by area.
        size: (h, w).

    Raises:
        SpecError: no such file, or a mask without a pixel.
        ArtifactError: a file that is no image.
    """
    if shape == "square":
        return torch.ones(1, *size)
    if shape == "circle":
        rows, columns = (2 * (torch.arange(side) + 0.5) / side - 1 for side in size)
        return (rows[:, None].square() + columns[None].square() <= 1).float()[None]
    path = Path(shape).expanduser()
    if not path.is_file():
        raise SpecError(f"--shape must be square, circle or an image file, got '{shape}', and there is no such file.")
    grey = Image.fromarray((255 * read_image(path, 1)[0]).round().astype(np.uint8))
    held = np.asarray(grey.resize((size[1], size[0]), Image.Resampling.BOX))
    mask = torch.from_numpy((held >= 128).astype(np.float32))[None]
    if not mask.any():
        raise SpecError(f"--shape: {path} is dark everywhere, so the patch would be empty; make its pixels white.")
    return mask
