"""A tiny one-stage detector with torchvision's interface: anchor-free, one level, focal loss and GIoU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.fields import SHARE, WHOLE, Rule, check_fields, each
from robustgen.nets import ResidualBlock

__all__ = ["STRIDE", "NetworkSettings", "TinyDetector", "batched", "map_shape", "owner", "points"]

STRIDE = 4  # pixels between two points of the map
_BREADTH = 1.5  # points within so many strides of an object's middle, in x and in y, answer for it
_PRIOR = 0.01  # the score that every point begins with; Lin et al. 2017, section 4.1
_CANDIDATES = 300  # boxes of an image that suppression sees at most
_LARGEST_LOG = 4.0  # of an edge over the stride: a limit on the exponential


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The shape of the network, and what it says.

    Args:
        channels: of the images.
        classes: without the background.
        widths: channels at a half, a quarter and an eighth of the resolution.
        head: channels of what boxes and classes are read from.
        score_threshold: boxes that score no more are not given.
        overlap: of two boxes of a class with a larger IoU the lower one is not given.
        most: boxes an image.
    """

    channels: int = 1
    classes: int = 10
    widths: tuple[int, ...] = (16, 32, 64)
    head: int = 48
    score_threshold: float = 0.05
    overlap: float = 0.5
    most: int = 100

    def __post_init__(self) -> None:
        check_fields(self, "network", _RULES)


_RULES: dict[str, Rule] = {
    "network.channels": WHOLE,
    "network.classes": WHOLE,
    "network.widths": (lambda value: each(WHOLE[0])(value) and len(value) == 3, "a list of three whole numbers >= 1"),
    "network.head": WHOLE,
    "network.score_threshold": SHARE,
    "network.overlap": SHARE,
    "network.most": WHOLE,
}


class TinyDetector(nn.Module):
    """Objects of any of some classes in small images, with torchvision's interface.

    In eval mode a list of images (C, H, W) gives a list of dicts: boxes (N, 4) x1 y1 x2 y2 in pixels, labels (N,) int64
    from 1, scores (N,) in (0, 1), highest first, differentiable. In training mode, with a list of dicts of boxes and
    labels, a dict of two losses.

    Source: FCOS, Tian et al. 2019, arXiv:1904.01355, sections 3.1 and 3.2; focal loss, Lin et al. 2017,
    arXiv:1708.02002; GIoU, Rezatofighi et al. 2019, arXiv:1902.09630.
    Differs: one level of stride 4; a point answers for an object whose middle is near, also from outside a thin box,
    and says where its middle is and how large it is; no centerness.

    Raises:
        SpecError: in training mode without targets.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        half, quarter, eighth = settings.widths
        self.stem = nn.Sequential(
            nn.Conv2d(settings.channels, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()
        )
        self.fine = nn.Sequential(ResidualBlock(half, quarter, 2), ResidualBlock(quarter, quarter, 1))
        self.coarse = nn.Sequential(ResidualBlock(quarter, eighth, 2), ResidualBlock(eighth, eighth, 1))
        self.from_fine = nn.Conv2d(quarter, settings.head, 1)
        self.from_coarse = nn.Conv2d(eighth, settings.head, 1)
        self.merge = _layer(settings.head)
        self.class_tower, self.box_tower = _layer(settings.head), _layer(settings.head)
        self.class_logits = nn.Conv2d(settings.head, settings.classes, 3, 1, 1)
        self.box_numbers = nn.Conv2d(settings.head, 4, 3, 1, 1)
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.constant_(self.class_logits.bias, math.log(_PRIOR / (1 - _PRIOR)))  # type: ignore[arg-type]

    def forward(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None) -> Any:
        """Images (C, H, W) in [0, 1], of any sizes, to detections; or to losses in training mode."""
        if self.training and targets is None:
            raise SpecError("a detector in training mode needs targets; call .eval() for detections.")
        x = batched(images)
        logits, boxes = self.predict(x)
        if self.training:
            assert targets is not None
            return self.losses(logits, boxes, targets, map_shape(x))
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return [self._detections(*row) for row in zip(logits, boxes, sizes, strict=True)]

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), H and W multiples of 8, to class logits (B, P, K) and boxes (B, P, 4) of its P points."""
        fine = self.fine(self.stem(x.contiguous(memory_format=torch.channels_last)))
        coarse = self.from_coarse(self.coarse(fine))
        shared = self.merge(F.relu(self.from_fine(fine) + F.interpolate(coarse, scale_factor=2.0)))
        logits = self.class_logits(self.class_tower(shared)).flatten(2).transpose(1, 2)
        numbers = self.box_numbers(self.box_tower(shared)).flatten(2).transpose(1, 2)
        middle = points((fine.shape[2], fine.shape[3]), x.device) + STRIDE * numbers[..., :2]
        half = 0.5 * STRIDE * numbers[..., 2:].clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
        return logits, torch.cat([middle - half, middle + half], 2)

    def losses(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[dict[str, Tensor]], shape: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Focal loss over all points and GIoU over those that answer for an object, each over their number."""
        from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss  # here: slow to import

        owners = [owner(points(shape, logits.device), target["boxes"]) for target in targets]
        wanted = torch.zeros_like(logits)
        true = torch.zeros_like(boxes)
        for row, (held, target) in enumerate(zip(owners, targets, strict=True)):
            mine = held >= 0
            wanted[row, mine, target["labels"][held[mine]] - 1] = 1
            true[row, mine] = target["boxes"][held[mine]]
        mine = torch.stack(owners) >= 0
        count = mine.sum().clamp(min=1)
        return {
            "classification": sigmoid_focal_loss(logits, wanted, reduction="sum") / count,
            "bbox_regression": generalized_box_iou_loss(boxes[mine], true[mine], reduction="sum") / count,
        }

    def _detections(self, logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """What one image of size (H, W) shows: above the threshold, the highest of those that overlap."""
        from torchvision.ops import batched_nms, clip_boxes_to_image  # here: slow to import

        scores = logits.sigmoid().flatten()
        kept = (scores > self.settings.score_threshold).nonzero()[:, 0]
        kept = kept[scores[kept].argsort(descending=True, stable=True)[:_CANDIDATES]]
        point, label = kept // logits.shape[1], kept % logits.shape[1] + 1
        found = clip_boxes_to_image(boxes[point], size)
        best = batched_nms(found, scores[kept], label, self.settings.overlap)[: self.settings.most]
        return {"boxes": found[best], "labels": label[best], "scores": scores[kept][best]}


def points(shape: tuple[int, int], device: torch.device) -> Tensor:
    """(P, 2) x and y in pixels of the points of a map of (rows, columns), row by row."""
    rows, columns = (STRIDE * (torch.arange(n, device=device) + 0.5) for n in shape)
    return torch.stack([columns.repeat(len(rows)), rows.repeat_interleave(len(columns))], 1)


def owner(where: Tensor, boxes: Tensor) -> Tensor:
    """(P,) int64: for which of the boxes (N, 4) each point (P, 2) answers, the smallest whose middle is near; or -1."""
    if not len(boxes):
        return torch.full((len(where),), -1, dtype=torch.int64, device=where.device)
    middle, edges = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    near = (where[:, None] - middle[None]).abs().amax(2) < _BREADTH * STRIDE
    area = torch.where(near, edges.prod(1), torch.inf)
    smallest, which = area.min(1)
    return torch.where(smallest.isfinite(), which, -1)


def _layer(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def map_shape(x: Tensor) -> tuple[int, int]:
    """(rows, columns) of the map of points over images (B, C, H, W)."""
    return x.shape[2] // STRIDE, x.shape[3] // STRIDE


def batched(images: Sequence[Tensor]) -> Tensor:
    """(B, C, H, W): the images in the upper left corners, black elsewhere, H and W multiples of 8."""
    height, width = (-(-max(image.shape[axis] for image in images) // 8) * 8 for axis in (1, 2))
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])
