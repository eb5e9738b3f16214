"""Detectors and pictures small enough for tests: blocks to compose scenes of, and networks whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustgen.detectors.recipe import DetectorRecipe

QUICK_RECIPE = {
    "name": "quick", "description": "A detector for a test.", "seed": 3,
    "data": {"name": "npz:blocks.npz", "validation": 8, "scenes": 6},
    "scenes": {"size": 24, "most": 2, "smallest": 6, "largest": 10},
    "network": {"channels": 1, "classes": 2, "widths": [4, 4, 4], "head": 4},
    "training": {"steps": 8, "batch_size": 2, "lr": 0.01, "validate_every": 3, "precision": "float32"},
}  # fmt: skip


def write_blocks(folder: Path, count: int = 40) -> None:
    """blocks.npz: grey pictures of 12 x 12, solid rectangles on black, class 0 wide and class 1 high."""
    rng, images, labels = np.random.default_rng(0), np.zeros((count, 12, 12, 1), np.uint8), np.arange(count) % 2
    labels[:2] = 1, 0  # not sorted by class
    for image, label in zip(images, labels, strict=True):
        top, left = rng.integers(0, 3, 2)
        h, w = (4, 8) if label == 0 else (8, 4)
        image[top : top + h, left : left + w] = rng.integers(128, 256)
    np.savez(folder / "blocks.npz", image=images, label=labels)


def quick_recipe(**training: object) -> DetectorRecipe:
    """A recipe that takes a second, on blocks.npz in the working folder."""
    return DetectorRecipe.from_dict({**QUICK_RECIPE, "training": {**QUICK_RECIPE["training"], **training}})


class Bright(nn.Module):
    """Sees on each image one box of class 1, always there, with the mean brightness inside it as its score."""

    def __init__(self, box: tuple[int, int, int, int] = (6, 6, 18, 18)) -> None:
        super().__init__()
        self.box = box

    def forward(self, images: list[Tensor], targets: object = None) -> list[dict[str, Tensor]]:
        """List of (C, H, W) to list of dicts."""
        left, top, right, bottom = self.box
        return [
            {
                "boxes": torch.tensor([self.box], dtype=torch.float32), "labels": torch.tensor([1]),
                "scores": image[:, top:bottom, left:right].mean()[None],
            }
            for image in images
        ]  # fmt: skip


def make_bright() -> nn.Module:
    """For python:tests/detector_helpers.py:make_bright."""
    return Bright()
