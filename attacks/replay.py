"""Images that somebody else found: each is shown to the judge as it is, one query an example."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.adversarials import Adversarials
from robustgen.attacks.base import QueryModel, State
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import BALLS, Norm, ThreatModel, per_row

__all__ = ["Replay", "ReplayState"]


@dataclass(kw_only=True)
class ReplayState(State):
    """`x_next` (B, C, H, W): the image to be shown; the clean one where none is held."""

    x_next: Tensor


@register_attack("replay")
@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Show the image that a file or an earlier run holds for an example.

    A transfer attack where the images were made against another classifier. `project=1` brings them back into the
    threat model first; otherwise one that lies outside breaks nothing.
    """

    source: Adversarials = field(default_factory=Adversarials)
    project: int = 0
    takes_goal: ClassVar[bool] = True
    serves: ClassVar[tuple[Norm, ...]] = (*BALLS, "patch")

    def __post_init__(self) -> None:
        if self.project not in (0, 1):
            raise SpecError(f"replay: project must be 0 or 1, got {self.project}.")

    @property
    def rounds(self) -> int:
        return 1

    @property
    def restarts(self) -> int:
        return 1

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> ReplayState:  # fmt: skip
        """Look the images up by example id."""
        images, held = self.source.of(rng.ids.tolist(), x)
        if self.project:
            images = threat.project(x, images)
        return ReplayState.start(x, y, threat, rng, goal=goal, x_next=torch.where(per_row(held, x), images, x))

    def step(self, oracle: QueryModel, s: State) -> ReplayState:
        """Query the image: (B, C, H, W)."""
        assert isinstance(s, ReplayState)
        return replace(s, x_adv=s.x_next, logits=oracle.logits(s.x_next), i=s.i + 1)
