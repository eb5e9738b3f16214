"""The patch threat model: one window of the image is the adversary's, every other pixel is untouched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

__all__ = ["PatchThreat"]

_FORM = r"(\d+)\s*x\s*(\d+)(?:\s*@\s*(\d+)\s*,\s*(\d+))?"


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchThreat(ThreatModel):
    """Images equal to x outside one axis-aligned window of height x width pixels, free in [0, 1] inside it.

    The distance says how many times larger the window would have to be, in the worse of its two directions, to hold
    every pixel that differs: at most 1 inside the threat model, so eps is 1.

    Args:
        height, width: of the window, in pixels.
        place: (row, column) of its upper left pixel, from 0; None where it may be anywhere in the image.
    """

    height: int
    width: int
    place: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise SpecError(f"threat: a patch has at least one pixel, got {self}; type for example patch:6x6.")

    @classmethod
    def of(cls, text: str) -> PatchThreat:
        """Read what follows "patch:": "6x6", or "6x6@2,3" for a window whose upper left pixel is in row 2, column 3.

        Raises:
            SpecError: not of that form, or no pixel at all.
        """
        match = re.fullmatch(_FORM, text.strip().lower())
        if match is None:
            raise SpecError(
                f"threat: expected patch:HxW such as patch:6x6, or patch:6x6@ROW,COLUMN, got 'patch:{text}'."
            )
        height, width, row, column = (None if part is None else int(part) for part in match.groups())
        assert height is not None
        assert width is not None
        place = None if row is None or column is None else (row, column)
        said = f"{height}x{width}" if place is None else f"{height}x{width}@{row},{column}"
        return cls("patch", 1.0, said, height=height, width=width, place=place)

    def check_images(self, shape: Sequence[int]) -> None:
        """Refuse images (C, H, W) that the window does not fit into.

        Raises:
            SpecError: the image is smaller, or the place lies too far out.
        """
        row, column = self.place or (0, 0)
        if self.height + row <= shape[1] and self.width + column <= shape[2]:
            return
        where = f" at row {row} and column {column}" if self.place else ""
        raise SpecError(
            f"threat {self}: a window of {self.height} x {self.width} pixels{where} is not inside images of {shape[1]} "
            f"x {shape[2]}; type a smaller one, such as patch:{max(1, shape[1] // 5)}x{max(1, shape[2] // 5)}."
        )

    def scaled(self, factor: float) -> ThreatModel:
        """Not possible: a window is a whole number of pixels.

        Raises:
            SpecError: always.
        """
        raise SpecError(f"threat {self}: a patch has no eps to multiply by {factor:g}; evaluate each size by itself.")

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """(B,) float64: times larger that the window would have to be; 0 where nothing differs."""
        differs = (x_adv != x).any(1)
        sides = zip(
            (self.height, self.width), self.place or (None, None), (differs.any(2), differs.any(1)), strict=True
        )
        ratios = [_reach(hit, start) / side for side, start, hit in (_centred(*part) for part in sides)]
        return torch.maximum(*ratios)

    def project(self, x: Tensor, z: Tensor, radius: Tensor | None = None) -> Tensor:
        """The nearest point to z (B, C, H, W) in L2: one window keeps its values, clipped to [0, 1]."""
        assert radius is None, "a window has one size"
        inside = z.clamp(0, 1)
        sums = self.window_sums(((z - x).square() - (z - inside).square()).sum(1))
        return torch.where(self.window(sums.flatten(1).argmax(1), x), inside, x)

    def random_start(
        self, x: Tensor, rng: ExampleRng, purpose: str = "start", step: Tensor | int = 0, *, surface: bool = False
    ) -> Tensor:
        """Uniform noise in a window whose place is uniform too; `surface` means nothing here."""
        rows, columns = self.places(x)
        number = rng.below(rng.ids.new_full((len(x),), rows * columns).to(x.device), purpose + "-place", step)
        return torch.where(self.window(number, x), rng.uniform(x.shape[1:], purpose, step, x.device).to(x), x)

    def steepest(self, grad: Tensor) -> Tensor:
        """Not possible: a window has no length.

        Raises:
            SpecError: always.
        """
        raise SpecError(f"threat {self}: this attack follows the steepest direction, and a window has none.")

    def places(self, x: Tensor) -> tuple[int, int]:
        """How many rows and columns the upper left pixel of the window can be in, for images (B, C, H, W)."""
        return (1, 1) if self.place else (x.shape[2] - self.height + 1, x.shape[3] - self.width + 1)

    def window_sums(self, values: Tensor) -> Tensor:
        """(B, H, W) of any sign -> (B, rows, columns): the sum inside the window at each of its places."""
        sums = F.avg_pool2d(values[:, None], (self.height, self.width), stride=1, divisor_override=1)[:, 0]
        if self.place is None:
            return sums
        row, column = self.place
        return sums[:, row : row + 1, column : column + 1]

    def window(self, number: Tensor, x: Tensor) -> Tensor:
        """(B, 1, H, W) bool: the window of x (B, C, H, W) at a place (B,) int64, as `window_sums` counts."""
        top, left = self.corner(number, x)
        rows = torch.arange(x.shape[2], device=x.device) - top[:, None]
        columns = torch.arange(x.shape[3], device=x.device) - left[:, None]
        held = (rows >= 0) & (rows < self.height), (columns >= 0) & (columns < self.width)
        return (held[0][:, :, None] & held[1][:, None, :])[:, None]

    def corner(self, number: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column (B,) int64 of the upper left pixel of the window at a place (B,)."""
        row, column = self.place or (0, 0)
        columns = self.places(x)[1]
        return number // columns + row, number % columns + column


def _centred(side: int, start: int | None, hit: Tensor) -> tuple[float, float | None, Tensor]:
    """Of a placed window half its side and its centre, from which a pixel's farther edge is measured."""
    return (side, None, hit) if start is None else (side / 2, start + side / 2, hit)


def _reach(hit: Tensor, centre: float | None) -> Tensor:
    """(B,) float64: pixels from the first to the last that is hit (B, N), or from the centre to the farthest edge."""
    size = hit.shape[1]
    index = torch.arange(size, device=hit.device)
    last = (hit * (index + 1)).amax(1).double()
    first = size - (hit * (size - index)).amax(1).double()
    reach = last - first if centre is None else torch.maximum(last - centre, centre - first)
    return torch.where(hit.any(1), reach, 0.0)
