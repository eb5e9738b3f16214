"""Adversarial training with projected gradient ascent (PGD-AT)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from robustgen.training.inner import ascend, check_attack, cross_entropy_to
from robustgen.training.method import Attacked, register_method

__all__ = ["PgdAdversarial"]


@register_method("pgd-at")
@dataclass(frozen=True, slots=True, kw_only=True)
class PgdAdversarial:
    """Minimise the loss at the points that projected gradient ascent finds from a random start.

    Source: Madry et al. 2018, arXiv:1706.06083, eq. (2.1) and section 2.1.
    Differs: labels are smoothed in the outer loss when asked.
    """

    threat: ThreatModel
    label_smoothing: float = 0.0
    steps: int = 10
    rel_step: float = 0.25  # step length as a fraction of eps
    guarded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_attack("pgd-at", self.threat, self.steps, self.rel_step)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        start = self.threat.random_start(x, rng, "training")

        return Attacked(
            ascend(model, cross_entropy_to(y), x, start, self.threat, steps=self.steps, rel_step=self.rel_step)
        )

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        return F.cross_entropy(model(attacked.x), y, label_smoothing=self.label_smoothing)

    def stronger(self) -> Self:
        return replace(self, steps=self.steps + 1)
