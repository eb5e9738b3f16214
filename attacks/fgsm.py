"""Fast gradient sign method (FGSM), one step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import QueryModel, State
from robustgen.attacks.losses import CE, Loss
from robustgen.attacks.pgd import PGDState
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, per_row

__all__ = ["FGSM"]


@register_attack("fgsm")
@dataclass(frozen=True, slots=True, kw_only=True)
class FGSM:
    """One step of length eps along the steepest direction of the loss at the clean image.

    Source: Goodfellow et al. 2015, arXiv:1412.6572, section 4.
    Differs: L2 and L1 take their own steepest direction; the paper has the sign (Linf) alone.
    """

    loss: Loss = CE()
    restarts: ClassVar[int] = 1
    takes_goal: ClassVar[bool] = True
    rounds: ClassVar[int] = 2  # the gradient at x, then the verdict at x_adv

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> PGDState:  # fmt: skip
        return PGDState.start(x, y, threat, rng, goal=goal, x_next=x)

    def step(self, oracle: QueryModel, s: State) -> PGDState:
        """The first round queries x and moves; the second queries the point it moved to."""
        assert isinstance(s, PGDState)
        query = oracle.grad(s.x_next, s.y, s.aimed(self.loss))
        moved = s.threat.project(s.x, s.x + s.threat.eps * s.threat.steepest(query.grad))
        x_next = torch.where(per_row(s.i == 0, s.x), moved, s.x_next)
        return replace(s, x_adv=s.x_next, x_next=x_next, logits=query.logits, i=s.i + 1)
