"""Drawing one scene: texture, lines and cut pieces, and objects where they hide little of each other. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

__all__ = ["Numbers", "Pixels", "compose", "draws_needed"]

Pixels = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]  # left, top, right, bottom

_DARK = 32  # bytes below it are the black around an object
_OPACITY = 6.0  # cover is brightness times this, at most 1
_COVERED = 0.5  # from this cover on a pixel counts for the box
_PLACES = 8  # tried for each object; the one that hides least is taken
_HIDDEN = 0.2  # share of the smaller of two boxes that may overlap
_COARSE = 8  # points along an edge at which the texture is drawn
_EACH = 6  # lines, and pieces, at clutter 1
_LINE_DRAWS, _PIECE_DRAWS, _OBJECT_DRAWS = 6, 8, 3 + 2 * _PLACES
_LEAST_PIECE, _LARGEST_PIECE = 5, 11  # edge in pixels


class Numbers:
    """Uniform numbers in [0, 1), handed out one after the other."""

    def __init__(self, row: Pixels) -> None:
        self._row, self._at = row.tolist(), 0

    def take(self, count: int) -> Pixels:
        """The next so many."""
        self._at += count
        return np.array(self._row[self._at - count : self._at], np.float32)

    def one(self) -> float:
        """The next one."""
        self._at += 1
        value: float = self._row[self._at - 1]
        return value

    def below(self, count: int) -> int:
        """A whole number from 0 to count - 1."""
        return min(int(self.one() * count), count - 1)


def draws_needed(most: int, clutter: float) -> int:
    """How many numbers a scene takes at most."""
    return 3 + _COARSE**2 + round(clutter * _EACH) * (_LINE_DRAWS + _PIECE_DRAWS) + most * _OBJECT_DRAWS


def compose(
    u: Numbers, grain: Pixels, picture: Callable[[int], npt.NDArray[np.uint8]], pictures: int, *,
    most: int, sides: tuple[int, int], clutter: float,
) -> tuple[Pixels, list[Box], list[int]]:  # fmt: skip
    """Image (H, W) in [0, 1], the tight boxes of its objects, and which picture each of them is.

    Args:
        u: at least `draws_needed` numbers.
        grain: (H, W) standard normal.
        picture: number to grey bytes (h, w) on black.
        pictures: how many there are.
        most: objects, from 1; one that would hide too much of another is left out.
        sides: least and largest longer side of an object, in pixels.
        clutter: 0 for black; 1 for six lines and six pieces on a texture, and noise; more for more.
    """
    wanted = 1 + u.below(most)
    canvas = np.zeros(grain.shape, np.float32)
    if clutter:
        canvas = _texture(u, grain.shape[0], clutter)
        canvas = _scratched(canvas, u, round(clutter * _EACH))
        for _ in range(round(clutter * _EACH)):
            _add_piece(canvas, u, picture(u.below(pictures)))
        canvas = np.clip(canvas + 0.04 * clutter * grain, 0, 1)
    boxes: list[Box] = []
    chosen: list[int] = []
    for _ in range(wanted):
        number = u.below(pictures)
        pixels = _object(picture(number), sides[0] + u.below(sides[1] - sides[0] + 1), mirrored=u.below(2) == 1)
        box = _freest(u, pixels.shape, canvas.shape, boxes)
        if box is None:
            continue
        cover, window = np.minimum(_OPACITY * pixels, 1), np.s_[box[1] : box[3], box[0] : box[2]]
        canvas[window] = canvas[window] * (1 - cover) + pixels * cover
        boxes.append(box)
        chosen.append(number)
    return canvas, boxes, chosen


def _texture(u: Numbers, size: int, clutter: float) -> Pixels:
    """A smooth random field about a random grey."""
    level, strength = 0.1 + 0.4 * u.one(), 0.5 * min(clutter, 1.0) * u.one()
    coarse = level + strength * (u.take(_COARSE**2).reshape(_COARSE, _COARSE) - 0.5)
    smooth = Image.fromarray(coarse.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth, np.float32), 0, 1)


def _scratched(canvas: Pixels, u: Numbers, lines: int) -> Pixels:
    """The canvas with straight lines across it, one or two pixels wide."""
    size, picture = len(canvas), Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for _ in range(lines):
        ends = (size * u.take(4)).astype(int).tolist()
        pen.line(ends, fill=0.9 * u.one(), width=1 + u.below(2))
    return np.array(picture)


def _add_piece(canvas: Pixels, u: Numbers, pixels: npt.NDArray[np.uint8]) -> None:
    """A cut piece of a picture somewhere: what an object is made of, without its outline."""
    steps = _LARGEST_PIECE - _LEAST_PIECE + 1
    h, w = (min(_LEAST_PIECE + u.below(steps), side, len(canvas)) for side in pixels.shape)
    top, left = (u.below(side - edge + 1) for side, edge in zip(pixels.shape, (h, w), strict=True))
    piece = pixels[top : top + h, left : left + w] * np.float32((0.4 + 0.6 * u.one()) / 255)
    row, column = u.below(len(canvas) - h + 1), u.below(len(canvas) - w + 1)
    window = np.s_[row : row + h, column : column + w]
    cover = np.minimum(_OPACITY * piece, 1)
    canvas[window] = canvas[window] * (1 - cover) + piece * cover


def _object(pixels: npt.NDArray[np.uint8], side: int, *, mirrored: bool) -> Pixels:
    """An object cut out of its black frame, its longer side so many pixels; each edge touches a covered pixel."""
    cut = _tight(pixels, _DARK)
    scale = side / max(cut.shape)
    h, w = (max(1, round(edge * scale)) for edge in cut.shape)
    scaled = np.asarray(Image.fromarray(cut).resize((w, h), Image.Resampling.BILINEAR), np.float32) / 255
    return _tight(scaled[:, ::-1] if mirrored else scaled, _COVERED / _OPACITY)


def _tight(pixels: npt.NDArray[Any], least: float) -> npt.NDArray[Any]:
    """The smallest part that holds every pixel of at least that brightness; all of it where there is none."""
    rows, columns = (np.flatnonzero((pixels >= least).any(axis)) for axis in (1, 0))
    if not len(rows):
        return pixels
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _freest(u: Numbers, shape: tuple[int, ...], room: tuple[int, ...], boxes: list[Box]) -> Box | None:
    """Of some random places that which hides least of the boxes; None where even that hides too much."""
    (h, w), found = shape, []
    for _ in range(_PLACES):
        top, left = u.below(room[0] - h + 1), u.below(room[1] - w + 1)
        box = left, top, left + w, top + h
        found.append((max((_hidden(box, other) for other in boxes), default=0.0), box))
    share, box = min(found, key=lambda pair: pair[0])
    return box if share <= _HIDDEN else None


def _hidden(a: Box, b: Box) -> float:
    """What two boxes share, over the smaller of them."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if across <= 0 or down <= 0:
        return 0.0
    return across * down / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
