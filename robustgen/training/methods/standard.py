"""Standard training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from robustgen.training.method import Attacked, register_method

__all__ = ["Standard"]


@register_method("standard")
@dataclass(frozen=True, slots=True, kw_only=True)
class Standard:
    """Cross-entropy on the images as they are; `threat` only says what the result is measured with."""

    threat: ThreatModel | None = None
    label_smoothing: float = 0.0
    guarded: ClassVar[bool] = False

    @property
    def steps(self) -> int:
        return 0

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        return Attacked(x)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        return F.cross_entropy(model(attacked.x), y, label_smoothing=self.label_smoothing)

    def stronger(self) -> Self:
        return self
