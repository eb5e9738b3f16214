"""What the attacks made for transfer share: iterated ascent along a gradient with momentum, round by round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from robustgen.attacks.base import QueryModel, State
from robustgen.attacks.losses import CE, Loss
from robustgen.fields import NOT_NEGATIVE, WHOLE, check_value
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, per_row

__all__ = ["Look", "Momentum", "MomentumState", "at_the_iterate", "reach_of"]

_TINY = 1e-30


@dataclass(kw_only=True)
class MomentumState(State):
    """Where a row stands.

    Attributes:
        x_next: (B, C, H, W), the iterate, inside the threat model.
        g: (B, C, H, W), the accumulated gradient.
    """

    x_next: Tensor
    g: Tensor


class Look(NamedTuple):
    """What one round saw: the point that was sent, its logits, and the gradient for the iterate (B, C, H, W).

    `varies` (B, C, H, W) is how it varies around the iterate, where the attack asks.
    """

    point: Tensor
    logits: Tensor
    grad: Tensor
    varies: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum(ABC):
    """The iteration of MI-FGSM; where and how the gradient is taken is the attack's own.

    g <- decay g + grad / mean |grad|, then a step of eps / steps along the steepest direction of g, projected.

    The last round asks the iterate itself, whatever the others ask, so that the point that counts has been seen.

    Source: Dong et al. 2018, arXiv:1710.06081, Algorithm 1.
    Differs: the gradient is divided by the mean of its absolute values, not by their sum, which scales g by the number
    of pixels and changes no step of MI; L2 and L1 take their own steepest direction; a projection after each step.
    """

    steps: int = 10
    decay: float = 1.0  # mu
    loss: Loss = CE()
    restarts: ClassVar[int] = 1
    takes_goal: ClassVar[bool] = True
    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_value(f"{self.name}: steps", self.steps, WHOLE)
        check_value(f"{self.name}: decay", self.decay, NOT_NEGATIVE)

    @property
    def rounds(self) -> int:
        return self.steps + 1  # the last iterate is asked as well

    @abstractmethod
    def look(self, oracle: QueryModel, s: Any, last: Tensor) -> Look:
        """The round's queries; rows that are `last` (B,) bool must ask their iterate."""

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **common: Any) -> MomentumState:
        """The first state, of the attack's own class."""
        return MomentumState.start(x, y, threat, rng, **common)

    def tune(self, s: Any, seen: Look) -> tuple[MomentumState, Tensor]:
        """The state with what the attack remembers of the round, and the gradient that is accumulated."""
        return s, seen.grad

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> MomentumState:  # fmt: skip
        return self.start(x, y, threat, rng, goal=goal, x_next=x, g=torch.zeros_like(x))

    def step(self, oracle: QueryModel, s: State) -> MomentumState:
        """One gradient and one step of the iterate for every row."""
        assert isinstance(s, MomentumState)
        seen = self.look(oracle, s, s.i >= self.steps)
        told, grad = self.tune(s, seen)
        size = per_row(grad.abs().flatten(1).mean(1).clamp(min=_TINY), grad)
        g = self.decay * s.g + grad / size
        ascent = s.x_next + s.threat.eps / self.steps * s.threat.steepest(g)
        x_next = s.threat.project(s.x, ascent)
        return replace(told, x_adv=seen.point, logits=seen.logits, i=s.i + 1, g=g, x_next=x_next)


def at_the_iterate(oracle: QueryModel, s: MomentumState, loss: Loss) -> Look:
    """The gradient where the iterate is."""
    query = oracle.grad(s.x_next, s.y, s.aimed(loss))
    return Look(s.x_next, query.logits, query.grad)


def reach_of(threat: ThreatModel, x: Tensor) -> float:
    """Size of a change of every pixel that has length eps: eps in Linf, eps / sqrt(n) in L2, eps / n in L1."""
    pixels = x[0].numel()
    return threat.eps / {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[threat.norm]
