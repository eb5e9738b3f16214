"""A training small enough for tests: 8 x 8 images in two classes, and a recipe that takes a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robustgen.training.recipe import Recipe
from robustgen.training.trainer import Trainer

RECIPE = """
name = "tiny"
description = "A recipe for tests."
seed = 3

[data]
name = "npz:{path}"
validation = 40

[network]
architecture = "small-resnet"
options = {{ widths = [8], depths = [1], stem_stride = 1, channels = 1, classes = 2 }}

[training]
method = "standard"
epochs = 2
batch_size = 16
optimizer = "adamw"
lr = 1e-2
weight_decay = 1e-4
warmup = 0.1
ema_decay = 0.9
augment = ["flip", "crop"]
precision = "float32"
"""


def write_data(folder: Path, n: int = 200, seed: int = 0) -> Path:
    """A file with n images of two classes, told apart by two features.

    The grey level, 128 - 10 or 128 + 10, is always right and falls to an Linf attack of 0.1; the direction of a bright
    bar is right for 19 images of 20 and withstands it.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    rng.shuffle(labels)
    images = (128 + (labels * 20 - 10))[:, None, None] + rng.integers(-3, 4, (n, 8, 8))
    upright = np.where(rng.random(n) < 0.95, labels, 1 - labels).astype(bool)
    images[upright, 1:7, 3:5] += 80
    images[~upright, 3:5, 1:7] += 80
    path = folder / "toy.npz"
    np.savez(path, image=images.astype(np.uint8)[..., None], label=labels)
    return path


def write_recipe(folder: Path, change: Callable[[str], str] = lambda text: text) -> Path:
    """A recipe file over `write_data`, after `change`."""
    path = folder / "tiny.toml"
    path.write_text(change(RECIPE.format(path=write_data(folder))), encoding="utf-8")
    return path


def with_training(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other settings in its table [training]."""
    return replace(recipe, training=replace(recipe.training, **changes))


class Interrupted(Exception):  # noqa: N818 -- no error of the program
    """What a test throws into a training."""


def interrupt_after(monkeypatch: Any, steps: int) -> None:
    """Let every trainer raise `Interrupted` instead of its step number `steps` + 1 in this process."""
    whole, done = Trainer.step, [0]

    def step(self: Trainer) -> float:
        if done[0] == steps:
            raise Interrupted
        done[0] += 1
        return whole(self)

    monkeypatch.setattr(Trainer, "step", step)


def write_generated(folder: Path, name: str = "made.npz", *, n: int = 50, **changes: Any) -> Path:
    """A file as `robustgen generator sample` writes it: bright images, so that they are told from real ones."""
    held = {
        "image": np.full((n, 8, 8, 1), 250, dtype=np.uint8),
        "label": np.arange(n) % 2,
        "provenance": json.dumps({"trained_on": {"data": "npz", "split": "train", "images": 160, "held_out": 40}}),
    }
    held |= changes
    np.savez(folder / name, **{key: value for key, value in held.items() if value is not None})
    return folder / name


class Shrinking:
    """A denoiser that pulls images halfway to grey, of any size."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """(B, C, H, W) in [-1, 1], noised."""
        return 0.5 * x
