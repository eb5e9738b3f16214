"""Pictures of samples: one row a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustgen.generator.denoiser import Denoiser, to_pixel_range
from robustgen.generator.draw import draw
from robustgen.generator.samplers import Heun

__all__ = ["grid_of_file", "sample_grid", "save_grid"]

_VISIBLE = 90  # pixels of a side


def sample_grid(denoiser: Denoiser, path: Path, *, columns: int = 10, rows: int = 10, seed: int = 0) -> None:
    """Draw a few images by 10 Heun steps and save them as a PNG, one row a class where there are classes."""
    rows = min(rows, denoiser.classes) if denoiser.classes else rows
    ids = list(range(rows * columns))
    labels = torch.arange(rows).repeat_interleave(columns) if denoiser.classes else None
    save_grid(draw(denoiser, Heun(steps=10), ids, labels, seed=seed, batch_size=100), path, columns)


def save_grid(x: Tensor, path: Path, columns: int) -> None:
    """Save images (N, C, H, W) in [-1, 1] as a PNG, `columns` a row; small ones enlarged, pixel by pixel."""
    from torchvision.utils import save_image  # here, not above: slow to import

    draft = path.with_name(f".{path.name}")
    times = max(1, _VISIBLE // max(x.shape[2:]))
    shown = to_pixel_range(x).repeat_interleave(times, 2).repeat_interleave(times, 3)
    save_image(shown, draft, nrow=columns, padding=1, pad_value=1.0, format="png")
    draft.replace(path)


def grid_of_file(path: Path, picture: Path, columns: int = 10, count: int = 100) -> None:
    """The first images of an .npz as a PNG; where classes come in turn, one column a class."""
    with np.load(path, allow_pickle=False) as file:
        images = torch.from_numpy(file["image"][:count]).permute(0, 3, 1, 2)
    save_grid(images.float() / 127.5 - 1, picture, columns)
