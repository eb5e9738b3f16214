"""Baselines: what every other attack has to beat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from robustgen.attacks.base import QueryModel, Sees, State
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import BALLS, Norm, ThreatModel

__all__ = ["Clean", "RandomNoise"]


@register_attack("clean")
@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """No attack: queries the images as they are."""

    restarts: ClassVar[int] = 1
    takes_goal: ClassVar[bool] = True
    serves: ClassVar[tuple[Norm, ...]] = (*BALLS, "patch")
    rounds: ClassVar[int] = 1

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> State:  # fmt: skip
        return State.start(x, y, threat, rng, goal=goal)

    def step(self, oracle: QueryModel, s: State) -> State:
        return replace(s, x_adv=s.x, logits=oracle.logits(s.x), i=s.i + 1)


@register_attack("noise")
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomNoise:
    """Independent random points of the threat model, one a round."""

    steps: int = 100
    restarts: ClassVar[int] = 1
    takes_goal: ClassVar[bool] = True
    serves: ClassVar[tuple[Norm, ...]] = (*BALLS, "patch")
    sees: ClassVar[Sees] = "scores"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SpecError(f"noise: steps must be >= 1, got {self.steps}.")

    @property
    def rounds(self) -> int:
        return self.steps

    def limited(self, queries: int) -> RandomNoise:
        """So many points."""
        return replace(self, steps=queries)

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> State:  # fmt: skip
        return State.start(x, y, threat, rng, goal=goal)

    def step(self, oracle: QueryModel, s: State) -> State:
        x_adv = s.threat.random_start(s.x, s.rng, step=s.i)
        return replace(s, x_adv=x_adv, logits=oracle.logits(x_adv), i=s.i + 1)
