"""Random resizing and padding as a defence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser
from robustgen.purify.base import Chain, Sanitiser, register_purifier, single_step
from robustgen.rng import ExampleRng

__all__ = ["ResizePad"]


@register_purifier("resize-pad")
@dataclass(frozen=True, slots=True, kw_only=True)
class ResizePad(Sanitiser):
    """Shrink each image to a random size, and pad it with zeros to its own at a random place.

    Source: Xie et al. 2018, arXiv:1711.01991. Differs: they enlarge and hand a larger image to the classifier; here the
    classifier's size stays, so images shrink. Bilinear; its gradient is exact.
    Under attack: falls to EOT over 30 draws (Athalye et al. 2018, arXiv:1802.00420).

    Args:
        smallest: side of the smallest image, as a share of the full one.
    """

    smallest: float = 0.85

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1:
            raise SpecError(f"resize-pad: smallest must be in (0, 1], got {self.smallest:g}.")

    @property
    def stochastic(self) -> bool:
        return True

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """One step."""
        return single_step(lambda x: self._move(x, rng))

    def _move(self, x: Tensor, rng: ExampleRng) -> Tensor:
        """Output pixel o shows the place (o + 1/2 - offset) H / side - 1/2 of the image, 0 where that lies outside."""
        draws = rng.uniform((3,), "resize", 0, x.device).to(x.dtype)
        lines = []
        for size, draw in ((x.shape[2], draws[:, 1]), (x.shape[3], draws[:, 2])):
            least = max(1, round(self.smallest * size))
            side = least + (draws[:, 0] * (size - least + 1)).floor()
            offset = (draw * (size - side + 1)).floor()
            places = torch.arange(size, device=x.device, dtype=x.dtype) + 0.5 - offset[:, None]
            lines.append((2 * places / side[:, None] - 1, (places > 0) & (places < side[:, None])))
        (down, rows), (right, columns) = lines
        grid = torch.stack(torch.broadcast_tensors(right[:, None, :], down[:, :, None]), 3)
        moved = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(inside, moved, 0)
