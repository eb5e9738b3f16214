"""TI-FGSM: momentum on gradients that are smoothed over translations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.attacks.base import QueryModel
from robustgen.attacks.momentum import Look, Momentum, MomentumState, at_the_iterate
from robustgen.errors import SpecError
from robustgen.registry import register_attack

__all__ = ["TIFGSM", "gaussian"]

_RADIUS, _SIDE = 7, 299  # of the paper's kernel, and the images that it is for


@register_attack("ti-fgsm")
@dataclass(frozen=True, slots=True, kw_only=True)
class TIFGSM(Momentum):
    """The gradient is convolved with a Gaussian of 2 k + 1 pixels and sigma = k / sqrt(3), then accumulated.

    Source: Dong et al. 2019, arXiv:1904.02884, eq. (7) and section 3.3.
    Differs: k is the paper's 7 of 299 pixels, scaled to the smaller side of the image, 1 at least; and as
    `robustgen.attacks.momentum` says.
    """

    radius: int = 0  # k; 0 scales it with the image
    name: ClassVar[str] = "ti-fgsm"

    def __post_init__(self) -> None:
        Momentum.__post_init__(self)
        if self.radius < 0:
            raise SpecError(f"ti-fgsm: radius is a number of pixels, 0 or more, got {self.radius}.")

    def look(self, oracle: QueryModel, s: MomentumState, last: Tensor) -> Look:
        return at_the_iterate(oracle, s, self.loss)

    def tune(self, s: Any, seen: Look) -> tuple[MomentumState, Tensor]:
        grad = seen.grad
        radius = self.radius or max(1, round(_RADIUS * min(grad.shape[2:]) / _SIDE))
        line, channels = gaussian(radius).to(grad), grad.shape[1]
        kernel = torch.outer(line, line).expand(channels, 1, -1, -1)
        return s, F.conv2d(grad, kernel, padding=radius, groups=channels)


def gaussian(radius: int) -> Tensor:
    """(2 radius + 1,) float64: a Gaussian of sigma = radius / sqrt(3) at whole places, of sum 1."""
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    line = torch.exp(-places.square() / (2 * radius**2 / 3))
    return line / line.sum()
