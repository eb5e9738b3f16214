"""Images of which one band or block is kept: what is kept where, how many a patch can touch, and a network for them.

A position is where the kept part begins; it goes on at the opposite edge, so that every pixel lies in equally many.

Source: Levine & Feizi 2020, arXiv:2002.10733, section 3: column smoothing, row smoothing and block smoothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.fields import WHOLE, check_value, one_of
from robustgen.nets import ARCHITECTURES, SmallResNet

__all__ = ["KINDS", "UNKNOWN", "Ablation", "AblationNet"]

KINDS = ("columns", "rows", "block")
UNKNOWN = -1.0  # a pixel that `AblationNet` knows nothing of; no pixel of an image has this value


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """One part of each image is kept, all else is ablated.

    Args:
        kind: "columns" keeps a band of `size` columns, "rows" one of `size` rows, "block" a square of that side.
        size: s, in pixels.

    Raises:
        SpecError: another kind, or a size below 1.
    """

    kind: str = "columns"
    size: int = 4

    def __post_init__(self) -> None:
        check_value("kind of ablation", self.kind, one_of(*KINDS))
        check_value("size of ablation", self.size, WHOLE)

    def positions(self, height: int, width: int) -> int:
        """How many there are in images of this size.

        Raises:
            SpecError: what is kept is larger than the image.
        """
        axes = {"columns": (width,), "rows": (height,), "block": (height, width)}[self.kind]
        if self.size > min(axes):
            raise SpecError(
                f"size of ablation must be 1 to {min(axes)} pixels for {height} x {width} images, got {self.size}."
            )
        return math.prod(axes)

    def kept(self, position: Tensor, height: int, width: int) -> Tensor:
        """(B, 1, H, W) bool: the pixels that are kept at positions (B,) int64."""
        row, column = position // width if self.kind == "block" else position, position % width
        down = (torch.arange(height, device=position.device) - row[:, None]) % height < self.size  # (B, H)
        across = (torch.arange(width, device=position.device) - column[:, None]) % width < self.size  # (B, W)
        if self.kind == "columns":
            down = torch.ones_like(down)
        elif self.kind == "rows":
            across = torch.ones_like(across)
        return (down[:, :, None] & across[:, None, :])[:, None]

    def apply(self, x: Tensor, position: Tensor, fill: float = UNKNOWN) -> Tensor:
        """x (B, C, H, W) with `fill` in every pixel that is not kept at its position (B,) int64."""
        return torch.where(self.kept(position, *x.shape[2:]), x, torch.full_like(x, fill))

    def touched(self, patch: int, height: int, width: int) -> int:
        """Delta: how many positions keep a pixel of a patch of patch x patch pixels, wherever it is.

        patch + s - 1 for bands, its square for blocks; never more than there are along an axis.

        Raises:
            SpecError: a patch that is no part of the image.
        """
        if not 1 <= patch <= min(height, width):
            raise SpecError(f"a patch must be 1 to {min(height, width)} pixels wide, got {patch}.")
        reach = patch + self.size - 1
        down, across = min(reach, height), min(reach, width)
        return {"columns": across, "rows": down, "block": down * across}[self.kind]


@ARCHITECTURES.register("ablation-resnet")
class AblationNet(nn.Module):
    """A small residual network that sees x and 1 - x of the pixels it knows, and 0 and 0 of those it does not.

    So an ablated pixel differs from every value that a pixel can have. A pixel is unknown where it is below 0, as
    `UNKNOWN` is; images must therefore reach it as they are, without mean and deviation taken off.

    Source: Levine & Feizi 2020, section 4 (encoding of the ablated image).

    Args:
        channels: of the images.
        options: of `SmallResNet`.
    """

    def __init__(self, *, channels: int = 1, **options: Any) -> None:
        super().__init__()
        if channels < 1:
            raise SpecError(f"ablation-resnet: channels must be >= 1, got {channels}.")
        self.pair = nn.Conv2d(channels, 2 * channels, 1).requires_grad_(requires_grad=False)
        same = torch.eye(channels)[:, :, None, None]
        with torch.no_grad():
            self.pair.weight.copy_(torch.cat([same, -same]))
            assert self.pair.bias is not None
            self.pair.bias.copy_(torch.cat([torch.zeros(channels), torch.ones(channels)]))
        self.network = SmallResNet(channels=2 * channels, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) in [0, 1], `UNKNOWN` where ablated, to logits (B, classes)."""
        known = (x.amin(1, keepdim=True) >= 0).to(x.dtype)
        logits: Tensor = self.network(self.pair(x) * known)
        return logits
