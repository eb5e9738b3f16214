"""Noise on a grid, so that adding it to an image is exact: what certificates by floating point silently assume.

Pixels are integers 0 .. 255, cut further into 2^bits parts; noise is a whole number of these parts, and so is the sum.
An image x on that grid and continuous noise G obey x + round(G) = round(x + G), so the votes of f on x + round(G) are
those of the function f o round under G itself, for **every** x on the grid: the theorem for continuous noise applies to
f o round. An adversary's image that is off the grid is rounded to it first, which moves it by at most half a part a
pixel; radii are shortened by as much (`slack`). What is left is how well the generator of random numbers draws G; its
doubles are spaced 2^-52 apart, and `approximation` bounds what that can change.

Source: the trap is that of Voracek & Hein 2023, arXiv:2207.07209; noise by numpy's Philox (Salmon et al. 2011), one key
for each (seed, example, block).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robustgen.certify.bounds import NOISES
from robustgen.errors import SpecError

__all__ = ["BLOCK", "GridNoise"]

BLOCK = 500  # draws that share a key
_REACH = 8.3  # standard deviations beyond which a double drawn by ziggurat practically never lies


@dataclass(frozen=True)
class GridNoise:
    """Noise for images with pixels k / 255.

    Args:
        sigma: in pixels of [0, 1]; see `bounds.radius_for` for the other kinds.
        kind: "normal", "uniform" or "laplace".
        bits: a grey level is cut into 2^bits parts.

    Raises:
        SpecError: sigma is not above 0, or no such kind.
    """

    sigma: float
    kind: str = "normal"
    bits: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise SpecError(f"--sigma must be above 0, in pixels of [0, 1], got {self.sigma:g}.")
        if self.kind not in NOISES:
            raise SpecError(f"noise must be one of {', '.join(NOISES)}, got '{self.kind}'.")

    @property
    def unit(self) -> float:
        """One part, in pixels of [0, 1]."""
        return 1 / (255 * float(2**self.bits))

    def draw(self, seed: int, example: int, block: int, shape: tuple[int, ...], purpose: str) -> npt.NDArray[np.int32]:
        """(BLOCK, *shape) whole parts; a function of these five alone."""
        text = f"{seed}/{purpose}/{example}/{block}".encode()
        key = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
        rng = np.random.Generator(np.random.Philox(key=key))
        size = (BLOCK, *shape)
        if self.kind == "normal":
            values = rng.standard_normal(size)
        elif self.kind == "laplace":
            values = rng.laplace(size=size)
        else:
            values = rng.uniform(-1.0, 1.0, size)
        values *= self.sigma / self.unit
        return np.rint(values, out=values).astype(np.int32)

    def on_grid(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        """Images in [0, 1] to whole parts; exact for pixels k / 255."""
        return np.rint(x / self.unit).astype(np.int32)

    def slack(self, pixels: int) -> float:
        """What rounding an adversary's image to the grid takes off a radius, in L2 (or L1) over so many pixels."""
        return (math.sqrt(pixels) if self.kind == "normal" else pixels) * self.unit / 2

    def approximation(self, pixels: int) -> float:
        """Bound of the total variation between the noise drawn and the noise meant: so much is taken off p."""
        parts = 2 * _REACH * max(1.0, self.sigma / self.unit)
        return pixels * parts * 2.0**-52
