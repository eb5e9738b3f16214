"""Decoupled direction and norm (DDN): one sphere a step, smaller after a success and larger after a failure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import QueryModel, State, start_again
from robustgen.attacks.losses import CE, Loss
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel, norm_of, per_row

__all__ = ["DDN", "DDNState"]

_TINY = 1e-12


@dataclass(kw_only=True)
class DDNState(State):
    """`x_next` (B, C, H, W) is queried by the next round, at distance `radius` (B,) before it was clipped."""

    x_next: Tensor
    radius: Tensor


@register_attack("ddn")
@dataclass(frozen=True, slots=True, kw_only=True)
class DDN:
    """Algorithm 1, for the nearest image in L2; with a goal the targeted form of it.

    Source: Rony et al. 2019, arXiv:1811.09600, Algorithm 1, with gamma 0.05, epsilon_0 = 1 and alpha annealed from 1 to
    0.01 by a cosine.
    Differs: no quantisation to grey values; where the gradient is exactly 0 the direction stays, the paper draws one.
    A restart after the first begins at random, a tenth away in every value, since the paper's start is always x.
    """

    steps: int = 300
    restarts: int = 1
    gamma: float = 0.05  # share by which the radius changes in a step
    radius: float = 1.0  # epsilon_0, in L2 over pixels of [0, 1]
    loss: Loss = CE()
    nearest_in: ClassVar[tuple[Norm, ...]] = ("l2",)
    takes_eps: ClassVar[bool] = False
    takes_goal: ClassVar[bool] = True
    early: ClassVar[float] = 0.85

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise SpecError(f"ddn: steps and restarts must be >= 1, got {self.steps} and {self.restarts}.")
        if not 0 < self.gamma < 1:
            raise SpecError(f"ddn: gamma is a share above 0 and below 1, got {self.gamma}.")
        if not 0 < self.radius < math.inf:
            raise SpecError(f"ddn: radius must be positive, got {self.radius}.")

    @property
    def rounds(self) -> int:
        return self.steps + 1  # the last point is queried too

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> DDNState:  # fmt: skip
        radius = x.new_full((len(x),), self.radius)
        return DDNState.start(x, y, threat, rng, goal=goal, x_next=start_again(x, rng), radius=radius)

    def step(self, oracle: QueryModel, s: State) -> DDNState:
        """Lines 5 to 13: query x + delta, move delta along the gradient, put it on the sphere of the next radius."""
        assert isinstance(s, DDNState)
        query = oracle.grad(s.x_next, s.y, s.aimed(self.loss))
        alpha = 0.01 + 0.99 * (1 + torch.cos(math.pi * s.i / self.steps)) / 2
        g = query.grad / per_row(norm_of(query.grad, "l2").clamp(min=_TINY), s.x)
        delta = s.x_next - s.x + per_row(alpha, s.x) * g
        wrong = s.reached(query.logits)
        radius = s.radius * torch.where(wrong, 1 - self.gamma, 1 + self.gamma)
        on_sphere = delta * per_row(radius / norm_of(delta, "l2").clamp(min=_TINY), s.x)
        return replace(
            s,
            x_adv=s.x_next,
            logits=query.logits,
            x_next=(s.x + on_sphere).clamp(0, 1),
            radius=radius,
            i=s.i + 1,
        )
