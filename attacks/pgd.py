"""Projected gradient descent (PGD), the baseline white-box attack."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from robustgen.attacks.base import SILENT_BY_DEFAULT, QueryModel, State, stay_close
from robustgen.attacks.losses import CE, Loss
from robustgen.errors import SpecError
from robustgen.fields import NOT_NEGATIVE, check_value
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

__all__ = ["PGD", "PGDState"]


@dataclass(kw_only=True)
class PGDState(State):
    """`x_next` (B, C, H, W): the point that the next round queries."""

    x_next: Tensor


@register_attack("pgd")
@dataclass(frozen=True, slots=True, kw_only=True)
class PGD:
    """Steepest ascent on the loss, projected back into the threat model after every step.

    Source: Madry et al. 2018, arXiv:1706.06083, eq. (2).
    Differs: the engine drops an example at its first success; the paper keeps the last iterate.
    """

    steps: int = 40
    rel_step: float = 0.1  # step length as a fraction of eps
    restarts: int = 1
    loss: Loss = CE()
    closeness: float = field(default=0.0, metadata=SILENT_BY_DEFAULT)  # weight of the squared distance to x
    takes_goal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise SpecError(f"pgd: steps and restarts must be >= 1, got {self.steps} and {self.restarts}.")
        if not 0 < self.rel_step < float("inf"):
            raise SpecError(f"pgd: rel_step must be positive, got {self.rel_step}.")
        check_value("pgd: closeness", self.closeness, NOT_NEGATIVE)

    @property
    def rounds(self) -> int:
        return self.steps + 1  # the start is a point as well

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> PGDState:  # fmt: skip
        return PGDState.start(x, y, threat, rng, goal=goal, x_next=threat.random_start(x, rng))

    def step(self, oracle: QueryModel, s: State) -> PGDState:
        """One ascent step for every row: (B, C, H, W) in, (B, C, H, W) out, inside the threat model."""
        assert isinstance(s, PGDState)
        query = oracle.grad(s.x_next, s.y, s.aimed(self.loss))
        query = stay_close(query, s.x_next, s.x, self.closeness)
        ascent = s.x_next + self.rel_step * s.threat.eps * s.threat.steepest(query.grad)
        return replace(s, x_adv=s.x_next, x_next=s.threat.project(s.x, ascent), logits=query.logits, i=s.i + 1)
