"""A patch onto the objects of scenes: in the middle of each box, in a size relative to it, each under its own draw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustgen.patch.paste import lit, paste, through_jpeg
from robustgen.patch.transforms import Transforms
from robustgen.rng import ExampleRng

__all__ = ["paste_on_objects"]


def paste_on_objects(
    images: Sequence[Tensor], boxes: Sequence[Tensor], patch: Tensor | None, mask: Tensor, *, share: float,
    transforms: Transforms, rng: ExampleRng, step: int = 0,
) -> list[Tensor]:  # fmt: skip
    """Images with the patch on every box.

    Args:
        images: (C, H, W) in [0, 1] each, of any sizes.
        boxes: (N, 4) x1 y1 x2 y2 of each image.
        patch: (C, h, w) in [0, 1]; None for uniform noise, anew for each object.
        mask: (1, h, w).
        share: at scale 1 the patch covers share^2 of the area of the box, in its own proportions.
        transforms: drawn for each object; JPEG, which knows no object, for each image.
        rng: one stream an image; object k has that of restart k.
        step: of the draws.

    Returns:
        The images, differentiable in `patch`.

    Source: Thys et al. 2019, arXiv:1904.08653, section 3: in the middle of the box, its size a part of the box.
    """
    out, (h, w) = list(images), mask.shape[1:]
    quality = transforms.draw(rng, step, mask.device).quality
    for k in range(max(map(len, boxes), default=0)):
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, held in enumerate(boxes):
            if len(held) > k:
                groups[tuple(images[number].shape)].append(number)
        for shape, rows in groups.items():
            streams = ExampleRng(rng.seed, rng.ids[rows], torch.full((len(rows),), k, dtype=torch.int64))
            here = torch.stack([boxes[number][k] for number in rows]).to(mask.device)
            area = (here[:, 2:] - here[:, :2]).prod(1)
            draws = transforms.draw(streams, step, mask.device)
            draws = replace(
                draws, scale=draws.scale * share * (area / (h * w)).sqrt(), quality=torch.zeros_like(draws.quality)
            )
            own = streams.uniform((shape[0], h, w), "random patch", step, mask.device) if patch is None else patch
            shown = lit(own, draws, streams, step)
            pasted = paste(
                torch.stack([out[number] for number in rows]), shown, mask, (here[:, :2] + here[:, 2:]) / 2, draws
            )
            for number, image in zip(rows, pasted, strict=True):
                out[number] = image
    if not bool(quality.any()):
        return out
    return [through_jpeg(image[None], quality[k : k + 1])[0] for k, image in enumerate(out)]
