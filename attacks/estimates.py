"""Ascents on gradients that are estimated from scores: two probes a direction, a few directions, then a step.

What NES, SPSA and bandits share. Each round sends one image: a probe on one side, its counterpart on the other, and,
after each step, the iterate itself, since only a point inside the threat model can end the attack.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import Budgeted, QueryModel, Sees, State
from robustgen.attacks.losses import Loss, Margin
from robustgen.attacks.phases import route
from robustgen.errors import SpecError
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, per_row

__all__ = ["Estimated", "EstimatedState", "both_sides", "half"]

_PLUS, _MINUS, _ITERATE = 0, 1, 2


@dataclass(kw_only=True)
class EstimatedState(State):
    """Where a row stands.

    Attributes:
        x_next: (B, C, H, W), what the next round queries.
        phase: (B,) int64: a probe on the first side, on the other, or the iterate.
        gain: (B,), the loss that the last round found.
        here: (B, C, H, W), the iterate, inside the threat model.
        u: the random direction of this pair; (B, C, H, W), or coarser.
        first: (B,), loss of the first probe.
        pairs: (B,) int64, pairs of this estimate so far.
        estimate: (B, C, H, W), sum of the estimates of the pairs so far.
        missed: (B,) bool, whether a probe of this estimate was a success.
    """

    x_next: Tensor
    phase: Tensor
    gain: Tensor
    here: Tensor
    u: Tensor
    first: Tensor
    pairs: Tensor
    estimate: Tensor
    missed: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated(Budgeted, ABC):
    """The rounds; where to probe and how to step is the attack's own."""

    rel_step: float = 0.1  # length of a step, in eps
    loss: Loss = Margin()
    sees: ClassVar[Sees] = "scores"
    takes_goal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Budgeted.__post_init__(self)
        if not 0 < self.rel_step < 10:
            raise SpecError(f"{self.name}: rel_step must be positive and below 10, got {self.rel_step}.")

    @abstractmethod
    def pairs(self) -> int:
        """Pairs of probes behind an estimate."""

    @abstractmethod
    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **common: Any) -> EstimatedState:
        """The first state, of the attack's own class."""

    @abstractmethod
    def direction(self, s: Any) -> Tensor:
        """u of the pair that begins in this round."""

    @abstractmethod
    def probe(self, s: Any, side: int) -> Tensor:
        """(B, C, H, W) in [0, 1]: the probe on this side, +1 or -1, of `here`."""

    @abstractmethod
    def add(self, s: Any) -> Any:
        """Count the pair whose losses are `first` and `gain` into the estimate."""

    @abstractmethod
    def move(self, s: Any) -> Any:
        """A step of `here` by the estimate."""

    def kept(self, s: Any) -> Tensor:
        """(B, C, H, W): what the next estimate begins with."""
        return torch.zeros_like(s.estimate)

    def asks_iterate(self, s: Any) -> Tensor:
        """(B,) bool: whether the new iterate is worth a query."""
        return torch.ones_like(s.missed)

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> EstimatedState:  # fmt: skip
        none, zero = torch.zeros_like(y), x.new_zeros(len(x))
        return self.begin(self.start(
            x, y, threat, rng, x_next=x, phase=none, gain=zero, here=x, u=x, first=zero, pairs=none,
            estimate=torch.zeros_like(x), missed=none.bool(), goal=goal,
        ))  # fmt: skip

    def step(self, oracle: QueryModel, s: State) -> EstimatedState:
        """Query one point for every row, learn from its loss, and choose the next point."""
        assert isinstance(s, EstimatedState)
        logits = oracle.logits(s.x_next)
        s = replace(s, x_adv=s.x_next, logits=logits, gain=s.aimed(self.loss)(logits, s.y).to(s.x), i=s.i + 1)
        s = replace(s, missed=s.missed | s.reached(logits))
        return route(s, s.phase, (self._other_side, self._learn, self.begin_estimate))

    def begin(self, s: EstimatedState) -> EstimatedState:
        """The first probe of a pair."""
        s = replace(s, u=self.direction(s), phase=torch.full_like(s.phase, _PLUS))
        return replace(s, x_next=self.probe(s, 1))

    def begin_estimate(self, s: EstimatedState) -> EstimatedState:
        """The first probe of an estimate."""
        return self.begin(
            replace(s, pairs=torch.zeros_like(s.pairs), estimate=self.kept(s), missed=torch.zeros_like(s.missed))
        )

    def _other_side(self, s: EstimatedState) -> EstimatedState:
        return replace(s, first=s.gain, x_next=self.probe(s, -1), phase=torch.full_like(s.phase, _MINUS))

    def _learn(self, s: EstimatedState) -> EstimatedState:
        """After the last pair a step, else the next pair."""
        s = self.add(replace(s, pairs=s.pairs + 1))
        return route(s, (s.pairs >= self.pairs()).long(), (self.begin, self._step))

    def _step(self, s: EstimatedState) -> EstimatedState:
        s = self.move(s)
        return route(s, self.asks_iterate(s).long(), (self.begin_estimate, _show))


def _show(s: EstimatedState) -> EstimatedState:
    return replace(s, x_next=s.here, phase=torch.full_like(s.phase, _ITERATE))


def both_sides(s: EstimatedState, plus: Tensor, minus: Tensor, spread: float) -> Tensor:
    """(B, C, H, W): (L+ - L-) (x+ - x-) / (2 spread)^2, which is (L+ - L-) u / (2 spread) where nothing was clipped."""
    return per_row(s.first - s.gain, s.x) * (plus - minus) / (2 * spread) ** 2


def half(name: str, samples: int) -> int:
    """How many pairs so many probes are.

    Raises:
        SpecError: an odd number, or none.
    """
    if samples < 2 or samples % 2:
        raise SpecError(f"{name}: samples come in pairs, an even number from 2 on, got {samples}.")
    return samples // 2
