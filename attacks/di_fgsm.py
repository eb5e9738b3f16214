"""DI-FGSM: momentum on gradients through a random resizing and padding of the iterate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import QueryModel
from robustgen.attacks.momentum import Look, Momentum, MomentumState
from robustgen.errors import SpecError
from robustgen.registry import register_attack

__all__ = ["DIFGSM"]


@register_attack("di-fgsm")
@dataclass(frozen=True, slots=True, kw_only=True)
class DIFGSM(Momentum):
    """With some probability the gradient is that at T(x), x resized at random and padded with zeros, through T.

    Source: Xie et al. 2019, arXiv:1803.06978, eq. (4) and (5), in its form with momentum.
    Differs: the paper enlarges images of 299 to 330 pixels; a classifier of small images takes one size, so they shrink
    to a side of at least `smallest` and are padded to their own. Nearest neighbours. And as
    `robustgen.attacks.momentum` says.
    """

    probability: float = 0.5
    smallest: float = 0.9  # side of the smallest image, as a share of the full one
    name: ClassVar[str] = "di-fgsm"

    def __post_init__(self) -> None:
        Momentum.__post_init__(self)
        if not 0 <= self.probability <= 1 or not 0 < self.smallest <= 1:
            raise SpecError(
                "di-fgsm: probability must be in [0, 1] and smallest in (0, 1], got "
                f"{self.probability:g} and {self.smallest:g}."
            )

    def look(self, oracle: QueryModel, s: MomentumState, last: Tensor) -> Look:
        draws = s.rng.uniform((4,), "di", s.i, s.x.device)
        moved = (draws[:, 0] < self.probability) & ~last
        down = _places(s.x.shape[2], draws[:, 1], draws[:, 2], moved, self.smallest).to(s.x)
        across = _places(s.x.shape[3], draws[:, 1], draws[:, 3], moved, self.smallest).to(s.x)
        point = down @ s.x_next @ across.mT
        query = oracle.grad(point, s.y, s.aimed(self.loss))
        return Look(point, query.logits, down.mT @ query.grad @ across)


def _places(size: int, shrink: Tensor, shift: Tensor, moved: Tensor, smallest: float) -> Tensor:
    """(B, 1, size, size) of 0 and 1: which pixel of the image each pixel of T(x) shows, none in the padding.

    T is linear, so it and the gradient through it are products with these, exact in any number format.
    """
    least = max(1, round(smallest * size))
    side = torch.where(moved, least + (shrink * (size - least + 1)).floor().long(), size)
    offset = (shift * (size - side + 1)).floor().long()
    place = torch.arange(size, device=shrink.device) - offset[:, None]
    source = torch.where((place >= 0) & (place < side[:, None]), place * size // side[:, None], -1)
    return (source[:, :, None] == torch.arange(size, device=shrink.device))[:, None]
