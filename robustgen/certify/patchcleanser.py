"""PatchCleanser: masks that surely cover a patch somewhere, and a certificate that needs no change of the classifier.

Source: Xiang et al. 2022, arXiv:2108.09135, algorithms 1 and 2. A set of masks is such that any patch of p x p pixels
lies wholly under one of them. Double masking: if all one-mask predictions agree, that is the answer; otherwise one that
disagrees is believed if every second mask leaves it as it is; otherwise the majority. It is certified, for every
content and place of the patch, where all two-mask predictions on the clean image equal the label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustgen.certify.patch_views import Aim, lead
from robustgen.errors import SpecError
from robustgen.patch_threat import PatchThreat

__all__ = ["MaskSet", "MaskTarget", "certify_patches", "double_masking", "mask_set"]


@dataclass(frozen=True)
class MaskSet:
    """Masks, 0 where they cover.

    Attributes:
        keep: (M, 1, H, W) float32.
        patch: the side of the largest square patch that one of them covers wherever it is.
    """

    keep: Tensor
    patch: int


def mask_set(height: int, width: int, patch: int, per_axis: int = 6) -> MaskSet:
    """R-covering masks: stride ceil((n - p + 1) / k), mask p + stride - 1, the last one flush with the far edge.

    Args:
        height, width: of the images.
        patch: p, the side of the patch.
        per_axis: k.

    Raises:
        SpecError: a patch that is no part of the image, or no masks.
    """
    if not 1 <= patch <= min(height, width):
        raise SpecError(f"a patch must be 1 to {min(height, width)} pixels wide, got {patch}.")
    if per_axis < 1:
        raise SpecError(f"masks an axis must be >= 1, got {per_axis}.")
    spans = [_spans(size, patch, per_axis) for size in (height, width)]
    keep = torch.ones(len(spans[0]) * len(spans[1]), 1, height, width)
    masks = ((rows, columns) for rows in spans[0] for columns in spans[1])
    for k, (rows, columns) in enumerate(masks):
        keep[k, :, slice(*rows), slice(*columns)] = 0
    return MaskSet(keep, patch)


def _spans(size: int, patch: int, per_axis: int) -> list[tuple[int, int]]:
    stride = math.ceil((size - patch + 1) / per_axis)
    length = min(patch + stride - 1, size)
    starts = sorted({min(start, size - length) for start in range(0, size - patch + 1, stride)})
    return [(start, start + length) for start in starts]


@torch.no_grad()
def certify_patches(classifier: nn.Module, x: Tensor, y: Tensor, masks: MaskSet, *, batch_size: int = 1000) -> Tensor:
    """(B,) bool: no patch of that size, wherever and whatever it is, makes `double_masking` err.

    Args:
        classifier: (B, C, H, W) float32 in [0, 1] -> logits.
        x, y: images (B, C, H, W) and labels.
        masks: see `mask_set`.
        batch_size: masked images sent at once.
    """
    keep = masks.keep.to(x)
    first, second = torch.triu_indices(len(keep), len(keep))  # a pair of equal masks is a single one
    certified = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for at in range(0, len(first), max(1, batch_size // max(1, len(x)))):
        if not certified.any():
            break
        rows = certified.nonzero().flatten()
        part = slice(at, at + max(1, batch_size // max(1, len(x))))
        pairs = keep[first[part]] * keep[second[part]]
        masked = (x[rows][:, None] * pairs[None]).flatten(0, 1)
        right = classifier(masked).argmax(1).unflatten(0, (len(rows), -1)) == y[rows][:, None]
        certified[rows] = right.all(1)
    return certified


@torch.no_grad()
def double_masking(classifier: nn.Module, x: Tensor, masks: MaskSet) -> Tensor:
    """(B,) int64: the answer of double masking, whatever was done to x (B, C, H, W)."""
    keep = masks.keep.to(x)
    answers = [_answer(classifier, image, keep) for image in x]
    return torch.tensor(answers, dtype=torch.int64, device=x.device)


def _answer(classifier: nn.Module, image: Tensor, keep: Tensor) -> int:
    single = classifier(image[None] * keep).argmax(1)
    majority = int(single.mode().values)
    for k in (single != majority).nonzero().flatten().tolist():
        twice = classifier(image[None] * keep * keep[k]).argmax(1)
        if bool((twice == single[k]).all()):
            return int(single[k])
    return majority


@dataclass(frozen=True, slots=True)
class MaskTarget:
    """Double masking as it is attacked, in the two ways in which it can be beaten.

    The majority of one-mask predictions can be turned; then each mask that hides the patch still dissents, and is not
    believed where some second mask disagrees already on the clean image. Or one dissenter can be made to be believed:
    then each second mask that hides the patch has to agree with it already on the clean image. So both have windows
    that are open and windows that are not, and for a certified image none is open.
    """

    classifier: nn.Module
    masks: MaskSet

    def answer(self, x: Tensor) -> Tensor:
        """(B,) int64 for images (B, C, H, W)."""
        return double_masking(self.classifier, x, self.masks)

    def aims(self, x: Tensor, y: Tensor) -> list[Aim]:
        """The majority; then the dissenter with the most open windows, where one has any."""
        keep = self.masks.keep.to(x)
        with torch.no_grad():
            pairs = torch.stack([self.classifier(x * keep * one).argmax(1) for one in keep])  # (M, M)
        whole = PatchThreat.of(f"{self.masks.patch}x{self.masks.patch}")
        hides = whole.window_sums(1 - keep[:, 0]) == self.masks.patch**2  # (M, rows, columns)
        believed = (pairs == y).all(1)
        majority = Aim(keep > 0, 0.0, lead, ~(hides & believed[:, None, None]).any(0))
        dissenters = [
            Aim((keep * keep[k]) > 0, 0.0, lead, ~(hides[k] | (hides & (pairs[k] != c)[:, None, None]).any(0)))
            for k in range(len(keep))
            for c in pairs[k][pairs[k] != y].unique()
        ]
        best = max(dissenters, key=lambda aim: int(aim.open.sum()), default=majority)
        return [majority, best] if best is not majority and bool(best.open.any()) else [majority]
