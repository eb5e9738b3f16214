"""Scenes: images with boxes, composed of small pictures on clutter. Those of a folder are read in `annotated`.

A scene is a pure function of seed, number and the pictures that it may use: batch size and order change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustgen.data import pixel_marks
from robustgen.dataset import Dataset
from robustgen.detectors.compose import Numbers, compose, draws_needed
from robustgen.errors import SpecError
from robustgen.fields import NOT_NEGATIVE, WHOLE, Rule, check_fields
from robustgen.rng import ExampleRng

__all__ = ["ComposedScenes", "Scene", "SceneSettings", "Scenes"]

_LEAST_SIZE = 24  # of a scene, in pixels


@dataclass(frozen=True, slots=True)
class Scene:
    """An image and what is on it.

    Attributes:
        image: (C, H, W) float32 in [0, 1].
        boxes: (N, 4) float32, x1 y1 x2 y2 in pixels; pixel (row, column) is the unit square from (column, row) on.
        labels: (N,) int64, from 1; 0 is the background.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor

    def target(self) -> dict[str, Tensor]:
        """As detectors with torchvision's interface take it in training."""
        return {"boxes": self.boxes, "labels": self.labels}


class Scenes(Protocol):
    """Numbered scenes."""

    @property
    def name(self) -> str:
        """How records call them."""

    @property
    def channels(self) -> int:
        """Of every image."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label; the first is the background."""

    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int]) -> list[Scene]:
        """Some of them, in the order given."""

    def holds(self, label: int) -> bool:
        """Whether objects of that class occur."""

    def digest(self) -> str:
        """SHA-256 over the pictures behind them."""

    def marks(self) -> Tensor:
        """(N,) int64: 64 bits of a hash of each picture behind them, by which it is known wherever it lies."""


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """How scenes are composed.

    Args:
        size: edge of a scene, in pixels.
        most: objects on it, from 1 to so many; one that finds no place is left out.
        smallest, largest: longer side of an object, in pixels.
        clutter: 0 for a black background; 1 for texture, lines, cut pieces of pictures and noise; more for more.
    """

    size: int = 64
    most: int = 4
    smallest: int = 14
    largest: int = 28
    clutter: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "scenes", _RULES)
        if not self.smallest <= self.largest <= self.size:
            raise SpecError(
                f"scenes: smallest <= largest <= size is needed, got {self.smallest}, {self.largest} and {self.size}."
            )


_RULES: dict[str, Rule] = {
    "scenes.size": (lambda value: WHOLE[0](value) and value >= _LEAST_SIZE, f"a whole number >= {_LEAST_SIZE}"),
    "scenes.most": WHOLE,
    "scenes.smallest": (lambda value: WHOLE[0](value) and value >= 4, "a whole number >= 4"),
    "scenes.largest": WHOLE,
    "scenes.clutter": NOT_NEGATIVE,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ComposedScenes:
    """Scenes made of the pictures of a data set that has grey ones on black, such as Fashion-MNIST.

    Args:
        dataset: where the pictures come from.
        pool: ids of those that may be used.
        settings: how they are put together.
        count: how many scenes there are.
        seed: of everything that is drawn.

    Raises:
        SpecError: colour images, or no picture at all.
    """

    dataset: Dataset
    pool: tuple[int, ...]
    settings: SceneSettings
    count: int
    seed: int

    def __post_init__(self) -> None:
        if self.dataset.shape[0] != 1:
            raise SpecError(
                f"scenes are composed of grey pictures on black, {self.dataset.name} has {self.dataset.shape[0]} "
                "channels; give scenes of your own as coco:FOLDER."
            )
        if not self.pool:
            raise SpecError(f"{self.dataset.name} has no picture left to compose scenes of; name other data.")

    @property
    def name(self) -> str:
        """That of the data."""
        return self.dataset.name

    @property
    def channels(self) -> int:
        """Grey."""
        return 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label; the first is the background."""
        return ("background", *self.dataset.class_names)

    def __len__(self) -> int:
        return self.count

    def holds(self, label: int) -> bool:
        """Whether one of the pictures is of that class."""
        return bool((self.dataset.labels[list(self.pool)] + 1 == label).any())

    def digest(self) -> str:
        """Of the pictures that may be used."""
        return self.dataset.digest(self.pool)

    def marks(self) -> Tensor:
        """(N,) int64, of the pictures that may be used."""
        return pixel_marks(self.dataset.read(id_) for id_ in self.pool)

    def take(self, numbers: Sequence[int]) -> list[Scene]:
        """Scenes by number, in the order given."""
        settings, rng = self.settings, ExampleRng.of(self.seed, numbers)
        drawn = rng.uniform((draws_needed(settings.most, settings.clutter),), "scene").numpy()
        grain = rng.normal((settings.size, settings.size), "scene noise").numpy()
        return [self._scene(Numbers(row), noise) for row, noise in zip(drawn, grain, strict=True)]

    def _scene(self, u: Numbers, grain: npt.NDArray[np.float32]) -> Scene:
        settings = self.settings
        image, boxes, chosen = compose(
            u, grain, lambda k: self.dataset.read(self.pool[k])[:, :, 0], len(self.pool), most=settings.most,
            sides=(settings.smallest, settings.largest), clutter=settings.clutter,
        )  # fmt: skip
        labels = 1 + self.dataset.labels[[self.pool[k] for k in chosen]]
        return Scene(torch.from_numpy(image)[None], torch.tensor(boxes, dtype=torch.float32), torch.from_numpy(labels))
