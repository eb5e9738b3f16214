"""Defences that lie: each looks robust to PGD and is not. They are here so that the health checks can be held to them.

All wrap an ordinary network whose weights they share, so a decoy is a card and no file of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.errors import unknown_name
from robustgen.nets import ARCHITECTURES, SmallResNet

__all__ = ["DECOYS", "Decoy"]


class Decoy(SmallResNet):
    """A small residual network behind something that hides its gradients.

    Args:
        trick: a name in `DECOYS`.
        options: of the network.
    """

    def __init__(self, *, trick: str, **options: Any) -> None:
        super().__init__(**options)
        if trick not in DECOYS:
            raise unknown_name("decoy", trick, DECOYS)
        self.trick = trick

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K)."""
        return DECOYS[self.trick](self, x)

    def plain(self, x: Tensor) -> Tensor:
        """Logits of the network without the trick."""
        return super().forward(x)


def saturate(net: Decoy, x: Tensor) -> Tensor:
    """Log-probabilities of logits so large that float32 rounds all but one probability to 0: no gradient is left."""
    return torch.log(F.softmax(100 * net.plain(x).float(), dim=1) + 1e-12)


def quantise(net: Decoy, x: Tensor) -> Tensor:
    """Input rounded to 16 levels, as in bit-depth reduction: the gradient of rounding is 0 everywhere."""
    return net.plain((x * 15).round() / 15)


def noise(net: Decoy, x: Tensor) -> Tensor:
    """Gaussian noise on the input, drawn anew at each call from torch's global generator, as users do."""
    return net.plain((x + 0.05 * torch.randn_like(x)).clamp(0, 1))


def sparsify(net: Decoy, x: Tensor) -> Tensor:
    """Mean-centred feature sparsification: what deviates little from its mean is set to the mean, in front of the net.

    The idea of Amini et al. 2024 (arXiv:2406.05927), applied to 4 x 4 averages of the input and with a threshold large
    enough to bite: the gradient through what was set is 0, though the image matters.
    """
    smooth = F.avg_pool2d(x, 4, stride=1, padding=2, count_include_pad=False)[..., : x.shape[2], : x.shape[3]]
    deviation = x - smooth
    return net.plain(smooth + torch.where(deviation.abs() > 0.15, deviation, 0.0 * deviation.detach()))


def resize_and_pad(net: Decoy, x: Tensor) -> Tensor:
    """Random resizing and padding (Xie et al. 2018, arXiv:1711.01991), drawn anew at each call."""
    height, width = x.shape[2:]
    side = int(torch.randint(height - 4, height + 1, ()))
    small = F.interpolate(x, size=(side, side * width // height), mode="bilinear", align_corners=False)
    down, right = height - small.shape[2], width - small.shape[3]
    top, left = int(torch.randint(0, down + 1, ())), int(torch.randint(0, right + 1, ()))
    return net.plain(F.pad(small, (left, right - left, top, down - top)))


def cold(net: Decoy, x: Tensor) -> Tensor:
    """Logits at temperature 1/1000: the cross-entropy and its gradient vanish."""
    return 1000 * net.plain(x)


def argmax(net: Decoy, x: Tensor) -> Tensor:
    """One-hot decisions instead of logits."""
    logits = net.plain(x)
    return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits) + 0 * logits


DECOYS: dict[str, Callable[[Decoy, Tensor], Tensor]] = {
    "saturate": saturate,
    "quantise": quantise,
    "noise": noise,
    "sparsify": sparsify,
    "resize-and-pad": resize_and_pad,
    "cold": cold,
    "argmax": argmax,
}

ARCHITECTURES.register("decoy")(Decoy)
