"""A patch in the world: pasted into an image file, and on a sheet to be printed."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from robustgen.durable import disk_errors, replace
from robustgen.errors import SpecError
from robustgen.fields import POSITIVE, SEED, check_value, number
from robustgen.files import read_image
from robustgen.patch.files import AnyPatch, TrainedPatch
from robustgen.patch.measure import Measured
from robustgen.patch.paste import lit, paste
from robustgen.patch.train import centres_for
from robustgen.patch.transforms import Transforms
from robustgen.rng import ExampleRng

__all__ = ["apply_patch", "export_patch", "sheet"]

_MM = 25.4  # in an inch
_MARGIN_MM, _GAP_MM, _MARK_MM, _LINE_MM = 12.0, 2.0, 6.0, 0.2  # around the patch; from it to a mark; marks
_LARGEST = 20_000  # pixels along an edge of a sheet


def apply_patch(
    trained: TrainedPatch, image: Path, out: Path, *, angle: float = 0.0, scale: float = 1.0, seed: int = 0
) -> tuple[int, int, int, int]:
    """Write the image with the patch in it as a PNG; returns (top, left, height, width) of the upright patch.

    In an image of another size than those of the training the patch is as large in proportion: by the smaller of the
    two ratios of the edges. Its place is that of the training; a random one is drawn from the seed.

    Raises:
        SpecError: a file that is no image, a patch that is larger than the image, or `out` that cannot be written.
    """
    check_value("--angle", angle, (number(-360, 360.0001), "degrees from -360 to 360"))
    check_value("--scale", scale, POSITIVE)
    check_value("--seed", seed, SEED)
    if not image.is_file():
        raise SpecError(f"there is no image {image}.")
    x = torch.from_numpy(read_image(image, len(trained.patch)))[None]
    ratio = min(x.shape[2] / trained.image_size[0], x.shape[3] / trained.image_size[1])
    height, width = (max(1, round(side * ratio)) for side in trained.patch.shape[1:])
    if scale * height > x.shape[2] or scale * width > x.shape[3]:
        raise SpecError(f"--scale {scale:g}: the patch would be larger than {image}.")
    rng = ExampleRng.of(seed, [0])
    draws = Measured(Transforms.none(), angle, scale).draws(rng, x.device)
    patch, mask = (
        torch.nn.functional.interpolate(part[None], (height, width)) for part in (trained.patch, trained.mask)
    )
    place = None
    if trained.place is not None:
        room = x.shape[2] - height, x.shape[3] - width
        place = min(round(trained.place[0] * ratio), room[0]), min(round(trained.place[1] * ratio), room[1])
    centres = centres_for(place, draws, patch, x)
    shown = paste(x, lit(patch, draws), mask[0], centres, draws)[0]
    pixels = (255 * shown).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()
    held = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(held, "PNG")
    _write(out, held.getvalue())
    left, top = (centres[0] - torch.tensor([width / 2, height / 2])).round().int().tolist()
    return top, left, height, width


def export_patch(trained: AnyPatch, out: Path, *, dpi: int, width_mm: float) -> list[Path]:
    """Write patch-WIDTHmm.png and .pdf, a sheet with crop marks at its corners.

    Raises:
        SpecError: a size or resolution that no sheet has, or a folder that cannot be written.
    """
    picture = sheet(trained, dpi=dpi, width_mm=width_mm)
    paths = []
    for form in ("png", "pdf"):
        held = io.BytesIO()
        if form == "png":
            picture.save(held, "PNG", dpi=(dpi, dpi))
        else:  # no dates, so that the same patch gives the same file
            picture.save(held, "PDF", resolution=float(dpi), creationDate=None, modDate=None)
        paths.append(out / f"patch-{width_mm:g}mm.{form}")
        _write(paths[-1], held.getvalue())
    return paths


def sheet(trained: AnyPatch, *, dpi: int, width_mm: float) -> Image.Image:
    """The patch, `width_mm` wide, on white, with two crop marks at each corner that do not touch it.

    Raises:
        SpecError: fewer pixels than the patch has, or more than a sheet can have.
    """
    check_value("--dpi", dpi, (number(1, 2401), "a whole number from 1 to 2400"))
    check_value("--width-mm", width_mm, POSITIVE)
    h, w = trained.patch.shape[1:]
    width, height = _pixels(width_mm, dpi), _pixels(width_mm * h / w, dpi)
    margin = _pixels(_MARGIN_MM, dpi)
    if width < w or height < h:
        raise SpecError(
            f"--width-mm {width_mm:g} at {dpi} dpi are {width} pixels, the patch has {w}; raise one of them."
        )
    if max(width, height) + 2 * margin > _LARGEST:
        raise SpecError(f"--width-mm {width_mm:g} at {dpi} dpi are more than {_LARGEST} pixels; lower one of them.")
    white = torch.ones(3, h, w)
    colours = torch.where(trained.mask > 0, trained.patch.expand(3, -1, -1), white)
    small = Image.fromarray((255 * colours).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    page = Image.new("RGB", (width + 2 * margin, height + 2 * margin), "white")
    page.paste(small.resize((width, height), Image.Resampling.NEAREST), (margin, margin))
    _mark(page, (margin, margin, margin + width, margin + height), dpi)
    return page


def _mark(page: Image.Image, box: tuple[int, int, int, int], dpi: int) -> None:
    """Two lines at each corner of the box (left, top, right, bottom), whose last pixels lie just inside its edges."""
    gap, length = _pixels(_GAP_MM, dpi), _pixels(_MARK_MM, dpi)
    line = max(1, _pixels(_LINE_MM, dpi))
    draw, (left, top, right, bottom) = ImageDraw.Draw(page), box
    for x, outward in ((left, -1), (right - line, 1)):
        for y, upward in ((top, -1), (bottom - line, 1)):
            start = left - gap - length if outward < 0 else right + gap
            draw.rectangle((start, y, start + length - 1, y + line - 1), fill="black")
            start = top - gap - length if upward < 0 else bottom + gap
            draw.rectangle((x, start, x + line - 1, start + length - 1), fill="black")


def _pixels(millimetres: float, dpi: int) -> int:
    return math.floor(millimetres / _MM * dpi + 0.5)


def _write(path: Path, content: bytes) -> None:
    if path.is_dir():
        raise SpecError(f"--out: {path} is a folder; name a file.")
    if not path.absolute().parent.is_dir():
        raise SpecError(f"--out: there is no folder {path.parent}; make it, or name another.")
    with disk_errors(path):
        replace(path, content)
