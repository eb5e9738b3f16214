"""Scenes with boxes as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["Shown", "draw_grid"]

_EDGE = 192  # pixels of a scene's longer edge, at least
_GAP, _TITLE = 6, 18
_BOX, _TRUE = (230, 60, 30), (60, 170, 255)

Shown = tuple[Tensor, Tensor, Sequence[str], Tensor]  # image (C, H, W), boxes (N, 4), a text each, true boxes (M, 4)


def draw_grid(rows: Sequence[Sequence[Shown]], titles: Sequence[str]) -> Image.Image:
    """A row a scene, a column a condition; what was detected in red with its text, true boxes in blue beneath.

    Args:
        rows: of what is shown, at most as many as there are titles.
        titles: of the columns.
    """
    tiles = [[_tile(*shown) for shown in row] for row in rows]
    width, height = (max(tile.size[axis] for row in tiles for tile in row) for axis in (0, 1))
    size = (len(titles) * (width + _GAP) - _GAP, _TITLE + len(tiles) * (height + _GAP) - _GAP)
    page = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for column, title in enumerate(titles):
        pen.text((column * (width + _GAP), 2), title, fill="black", font=font)
    for row, line in enumerate(tiles):
        for column, tile in enumerate(line):
            page.paste(tile, (column * (width + _GAP), _TITLE + row * (height + _GAP)))
    return page


def _tile(image: Tensor, boxes: Tensor, texts: Sequence[str], true: Tensor) -> Image.Image:
    """One scene, enlarged by a whole factor."""
    factor = max(1, -(-_EDGE // max(image.shape[1:])))
    pixels = (255 * image.detach().cpu().expand(3, -1, -1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    tile = Image.fromarray(np.ascontiguousarray(pixels.repeat(factor, 0).repeat(factor, 1)))
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(10)
    for box in (factor * true).tolist():
        pen.rectangle(box, outline=_TRUE)
    for box, text in zip((factor * boxes.detach().cpu()).tolist(), texts, strict=True):
        pen.rectangle(box, outline=_BOX, width=2)
        pen.text((box[0] + 3, box[1] + 1), text, fill=_BOX, font=font, stroke_width=1, stroke_fill="white")
    return tile
