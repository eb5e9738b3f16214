"""Training for derandomized smoothing: on images of which one band or block is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.ablation import UNKNOWN, Ablation
from robustgen.errors import SpecError
from robustgen.fields import number
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from robustgen.training.method import Attacked, register_method

__all__ = ["Ablated"]


@register_method("ablation")
@dataclass(frozen=True, slots=True, kw_only=True)
class Ablated:
    """Cross-entropy on images of which a band or a block at a random position is kept, a new one each time.

    Source: Levine & Feizi 2020, arXiv:2002.10733, section 4.

    Args:
        kind, size: what is kept, see `Ablation`.
        fill: what stands where nothing is kept: -1, which the architecture "ablation-resnet" knows as unknown, or a
            value in [0, 1] for any other network; `certify-patches --fill` must then name the same.
    """

    threat: ThreatModel | None = None
    label_smoothing: float = 0.0
    kind: str = "columns"
    size: int = 4
    fill: float = UNKNOWN
    guarded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        Ablation(kind=self.kind, size=self.size)
        if self.fill != UNKNOWN and not (number(0, 1)(self.fill) or self.fill == 1):
            raise SpecError(f"training.fill must be -1 (unknown) or a value in [0, 1], got {self.fill!r}.")

    @property
    def steps(self) -> int:
        return 0

    def measured_on(self, x: Tensor, rng: ExampleRng) -> Tensor:
        """Images (B, C, H, W) with one part kept, each at a position of its own."""
        ablation = Ablation(kind=self.kind, size=self.size)
        high = torch.full((len(x),), ablation.positions(*x.shape[2:]), device=x.device)
        return ablation.apply(x, rng.below(high, "training-ablation"), self.fill)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        return Attacked(self.measured_on(x, rng))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        return F.cross_entropy(model(attacked.x), y, label_smoothing=self.label_smoothing)

    def stronger(self) -> Self:
        return self
