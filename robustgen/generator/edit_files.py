"""The pictures of `robustgen generator inpaint` and `interpolate`."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from robustgen.data import load_data, parse_ids
from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser, to_generator_range
from robustgen.generator.edit import inpaint, interpolate
from robustgen.generator.grid import save_grid
from robustgen.generator.samplers import Sampler

__all__ = ["inpaint_to_picture", "interpolate_to_picture", "parse_box"]


def parse_box(text: str, height: int, width: int) -> Tensor:
    """A mask (1, 1, H, W), 0 inside "top:bottom,left:right" and 1 outside.

    Raises:
        SpecError: not of that form, empty, or beyond the image.
    """
    match = re.fullmatch(r"\s*(\d+):(\d+)\s*,\s*(\d+):(\d+)\s*", text)
    if match is None:
        raise SpecError(f"--box must be top:bottom,left:right in pixels, such as 0:14,0:28, got '{text}'.")
    top, bottom, left, right = map(int, match.groups())
    if not (top < bottom <= height and left < right <= width):
        raise SpecError(
            f"--box {text}: must be a region inside {height} x {width} pixels, such as 0:{height},0:{width}."
        )
    keep = torch.ones(1, 1, height, width)
    keep[:, :, top:bottom, left:right] = 0
    return keep


def inpaint_to_picture(
    denoiser: Denoiser,
    sampler: Sampler,
    *,
    data: str,
    data_dir: Path | None,
    ids: str,
    box: str,
    rounds: int,
    with_class: bool,
    seed: int,
    out: Path,
) -> None:
    """Fill in a box of some images of a data set; three rows: given, masked, filled in.

    Raises:
        SpecError: images that this generator does not make, an impossible box, ids or class.
    """
    dataset = load_data(data, data_dir=data_dir)
    if dataset.shape != denoiser.shape:
        raise SpecError(f"{data} has images {dataset.shape}, this generator makes {denoiser.shape}.")
    chosen = parse_ids(ids, None, len(dataset), dataset.name)
    images, labels = dataset.batch(chosen)
    x = to_generator_range(images)
    keep = parse_box(box, *denoiser.shape[1:])
    label = labels if with_class and denoiser.classes else None
    filled = inpaint(denoiser, sampler, x, keep, label, rounds=rounds, seed=seed, ids=chosen)
    save_grid(torch.cat([x, x * keep, filled]), out, len(chosen))


def interpolate_to_picture(
    denoiser: Denoiser,
    sampler: Sampler,
    first: int,
    last: int,
    count: int,
    *,
    label: int | None,
    seed: int,
    out: Path,
) -> None:
    """One row a class, from one image to another."""
    rows: list[int | None] = [label] if label is not None or not denoiser.classes else [*range(denoiser.classes)]
    images = [interpolate(denoiser, sampler, first, last, count, row, seed=seed) for row in rows]
    save_grid(torch.cat(images), out, count)
