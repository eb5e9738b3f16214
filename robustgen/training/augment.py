"""Augmentations of training images, as bytes: each a function of the batch and one generator of random numbers.

`flip` and `crop` together are what papers call "common" augmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AUGMENTATIONS", "MIXES", "cutmix", "cutout", "random_crop", "random_flip"]

_PAD_SHARE = 8  # random_crop pads by an eighth of the image's side: 4 pixels for 32 x 32
_CUT_SHARE = 2  # cutout blackens a square of half the image's side
_SHIFT_SHARE = 3  # idbh moves an image by up to a third of its side: 10 pixels of 32


def random_flip(x: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror each image (B, C, H, W) left to right with probability 1/2."""
    chosen = torch.rand(len(x), generator=rng) < 0.5
    return torch.where(chosen[:, None, None, None], x.flip(3), x)


def random_crop(x: Tensor, rng: torch.Generator) -> Tensor:
    """Move each image (B, C, H, W) by up to an eighth of its side; black comes in from outside."""
    return _shifted(x, max(1, min(x.shape[2:]) // _PAD_SHARE), rng)


def cutout(x: Tensor, rng: torch.Generator) -> Tensor:
    """Blacken a square of half the side of each image (B, C, H, W), its centre anywhere in the image.

    Source: DeVries & Taylor 2017, arXiv:1708.04552, section 3.2; 16 of 32 pixels on CIFAR-10.
    """
    _, _, height, width = x.shape
    half = max(1, min(height, width) // (2 * _CUT_SHARE))
    inside = _spans(len(x), height, half, rng)[:, :, None] & _spans(len(x), width, half, rng)[:, None, :]
    return x.masked_fill(inside[:, None], 0)


def autoaugment(x: Tensor, rng: torch.Generator) -> Tensor:
    """The policy that Cubuk et al. 2019, arXiv:1805.09501, found for CIFAR-10; torchvision's."""
    return _each(_transform("autoaugment"), x, rng)


def randaugment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Two random operations of magnitude 9 an image, Cubuk et al. 2020, arXiv:1909.13719; torchvision's."""
    return _each(_transform("randaugment"), x, rng)


def idbh(x: Tensor, rng: torch.Generator) -> Tensor:
    """Flip, move by up to a third, change colour or shape, erase a box: diverse, and of balanced hardness.

    Source: Li & Spratling 2023, arXiv:2301.09879, section 4.
    Differs: "ColorShape" is one operation of torchvision's RandAugment, and erasing is torchvision's with probability
    1/2; the authors' tables of strengths are their own.
    """
    return _each(_transform("idbh"), _shifted(random_flip(x, rng), max(1, min(x.shape[2:]) // _SHIFT_SHARE), rng), rng)


def cutmix(x: Tensor, y: Tensor, classes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paste a box of another image of the batch into each one, and mix the labels by area.

    The box has the image's proportions and an area of 1 - lambda, lambda uniform in [0, 1], before it is cut off at the
    border; the labels are mixed by what is left of it.

    Args:
        x: (B, C, H, W).
        y: (B,) int64 or (B, K) probabilities.
        classes: K.
        rng: where chance comes from.

    Returns:
        Images, and labels (B, K) float32.

    Source: Yun et al. 2019, arXiv:1905.04899, eq. (1) and (2); in adversarial training Rebuffi et al. 2021,
    arXiv:2103.01946, section 4.
    """
    n, _, height, width = x.shape
    side = (1 - torch.rand(n, generator=rng)).sqrt()
    rows = _spans(n, height, (side * height / 2).round(), rng)
    columns = _spans(n, width, (side * width / 2).round(), rng)
    inside = rows[:, :, None] & columns[:, None, :]
    other = torch.randperm(n, generator=rng)
    share = inside.flatten(1).float().mean(1)[:, None]
    y = y if y.ndim == 2 else F.one_hot(y, classes).float()
    return torch.where(inside[:, None], x[other], x), (1 - share) * y + share * y[other]


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "flip": random_flip,
    "crop": random_crop,
    "cutout": cutout,
    "autoaugment": autoaugment,
    "randaugment": randaugment,
    "idbh": idbh,
}
MIXES: dict[str, Callable[[Tensor, Tensor, int, torch.Generator], tuple[Tensor, Tensor]]] = {"cutmix": cutmix}


def _shifted(x: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Each image moved by up to `most` pixels in both directions; black comes in from outside."""
    n, _, height, width = x.shape
    padded = F.pad(x, (most, most, most, most))
    top, left = torch.randint(0, 2 * most + 1, (2, n), generator=rng)
    rows = top[:, None] + torch.arange(height)  # (B, H)
    columns = left[:, None] + torch.arange(width)  # (B, W)
    image = torch.arange(n)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _spans(n: int, length: int, half: int | Tensor, rng: torch.Generator) -> Tensor:
    """(N, length) bool: what lies within `half` of a centre drawn anywhere; cut off at the ends."""
    centre = torch.randint(0, length, (n,), generator=rng)[:, None]
    half = half[:, None] if isinstance(half, Tensor) else half
    place = torch.arange(length)[None, :]
    return (place >= centre - half) & (place < centre + half)


def _each(transform: Callable[[Tensor], Tensor], x: Tensor, rng: torch.Generator) -> Tensor:
    """A transform that draws from torch's global generator, image by image; that generator is left as it was."""
    seed = int(torch.randint(2**62, (1,), generator=rng))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.stack([transform(image) for image in x])


@cache
def _transform(name: str) -> Any:
    from torchvision.transforms import v2  # here, not above: slow to import, and seldom needed

    if name == "autoaugment":
        return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    if name == "randaugment":
        return v2.RandAugment(num_ops=2, magnitude=9)
    return v2.Compose([v2.RandAugment(num_ops=1, magnitude=9), v2.RandomErasing(p=0.5)])
