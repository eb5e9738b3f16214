"""Attacks that see the predicted label and nothing else: how each of them begins.

A row looks for any misclassified image, bisects the way to it, and then goes along the boundary as its attack says, one
query a round. With a goal only that class counts, and the row begins at an image of it, where one is given. The engine
is shown every point: inside an eps the first misclassified one ends the attack, without an eps the nearest one counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import Budgeted, QueryModel, Sees, State
from robustgen.attacks.phases import route, where
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel, norm_of, per_row

__all__ = ["OWN", "DecisionBased", "DecisionState", "between", "noise"]

OWN = 2  # the first phase of an attack's own, after the start (0) and the bisection (1)
TINY = 1e-12


@dataclass(kw_only=True)
class DecisionState(State):
    """Where a row stands.

    Attributes:
        x_next: (B, C, H, W), what the next round queries.
        wrong: (B,) bool, whether the last answer was another class than y; with a goal, whether it was that class.
        phase: (B,) int64.
        far: (B, C, H, W), the misclassified end of the bisection; the other is x.
        low, high: (B,), what is being bisected; in the bisection parts of the way from x to `far`.
        here: (B, C, H, W), the misclassified point near the boundary from which the walk goes on.
    """

    x_next: Tensor
    wrong: Tensor
    phase: Tensor
    far: Tensor
    low: Tensor
    high: Tensor
    here: Tensor


Phase = Callable[[Any], Any]  # rows in one phase -> the same rows


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionBased(Budgeted, ABC):
    """The start, the bisection, and the round; what comes after is the attack's own."""

    takes_eps: ClassVar[bool] = True
    takes_goal: ClassVar[bool] = True
    sees: ClassVar[Sees] = "labels"
    nearest_in: ClassVar[tuple[Norm, ...]] = ("l2",)

    @abstractmethod
    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **common: Any) -> DecisionState:
        """The first state, of the attack's own class."""

    @abstractmethod
    def learn(self) -> Sequence[Phase]:
        """What the answer changes, phase by phase from OWN on."""

    @abstractmethod
    def propose(self) -> Sequence[Phase]:
        """What is queried next, phase by phase from OWN on."""

    @abstractmethod
    def arrive(self, s: Any) -> Any:
        """Rows whose `here` has just reached the boundary: the phase they go on in."""

    def precision(self, x: Tensor, norm: Norm) -> float:
        """How close the bisection comes, as a part of the way."""
        return 2.0**-10

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> DecisionState:  # fmt: skip
        zero = x.new_zeros(len(x))
        return self.start(
            x, y, threat, rng, goal=goal, x_next=noise(x, rng, torch.zeros_like(y)), phase=torch.zeros_like(y),
            wrong=torch.zeros_like(y, dtype=torch.bool), far=x, low=zero, high=zero + 1, here=x,
        )  # fmt: skip

    def step(self, oracle: QueryModel, s: State) -> DecisionState:
        """Query one point for every row, learn from the label, and choose the next point."""
        assert isinstance(s, DecisionState)
        logits = oracle.logits(s.x_next)
        s = replace(s, x_adv=s.x_next, logits=logits, wrong=s.reached(logits), i=s.i + 1)
        s = route(s, s.phase, (_learn_start, self._learn_bisection, *self.learn()))
        return route(s, s.phase, (_propose_start, _propose_bisection, *self.propose()))

    def _learn_bisection(self, s: DecisionState) -> DecisionState:
        middle = (s.low + s.high) / 2
        s = replace(s, low=torch.where(s.wrong, s.low, middle), high=torch.where(s.wrong, middle, s.high))
        return where(s, s.high - s.low <= self.precision(s.x, s.threat.norm), lambda part: self.arrive(_stand(part)))


def _learn_start(s: DecisionState) -> DecisionState:
    """A misclassified image is the far end of the bisection."""
    far = torch.where(per_row(s.wrong, s.x), s.x_next, s.far)
    return replace(s, far=far, phase=s.wrong.long(), low=torch.zeros_like(s.low), high=torch.ones_like(s.high))


def _propose_start(s: DecisionState) -> DecisionState:
    return replace(s, x_next=noise(s.x, s.rng, s.i))


def _propose_bisection(s: DecisionState) -> DecisionState:
    return replace(s, x_next=between(s, (s.low + s.high) / 2))


def _stand(s: DecisionState) -> DecisionState:
    """At the misclassified end of what is left of the way."""
    return replace(s, here=between(s, s.high))


def between(s: DecisionState, part: Tensor) -> Tensor:
    """(B, C, H, W): the point at this part (B,) of the way from x to `far`, in Linf `far` clipped to that distance."""
    if s.threat.norm == "linf":
        reach = per_row(part * norm_of(s.far - s.x, "linf"), s.x)
        return torch.minimum(torch.maximum(s.far, s.x - reach), s.x + reach)
    return s.x + per_row(part, s.x) * (s.far - s.x)


def noise(x: Tensor, rng: ExampleRng, tries: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1]: uniform noise at the first of the tries (B,), then coarser noise of any grain.

    Every other later one is black and white, with a share of white of its own: a network gives one class to most
    fine noise, and an example of that class needs another start.
    """
    height, width = x.shape[2:]
    fine = rng.uniform(x.shape[1:], "start", tries, x.device).to(x)
    grain = 1 + torch.where(tries > 0, rng.below(torch.full_like(tries, max(2, height, width) // 2), "grain", tries), 0)
    rows = torch.arange(height, device=x.device)[None] // grain[:, None] * grain[:, None]  # (B, H): corners of cells
    columns = torch.arange(width, device=x.device)[None] // grain[:, None] * grain[:, None]
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    coarse = fine[batch, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
    white = (coarse < rng.uniform((1, 1, 1), "white", tries, x.device).to(x)).to(x)
    return torch.where(per_row(tries % 2 == 1, x), white, coarse)
