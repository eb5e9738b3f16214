"""SimBA: one direction of an orthonormal basis after the other, up or down, kept where it helps. It sees scores."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import Budgeted, QueryModel, Sees, State
from robustgen.attacks.cosines import cosines
from robustgen.attacks.losses import Loss, Margin
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, per_row

__all__ = ["SimBA", "SimBADCT", "SimBAState"]


@dataclass(kw_only=True)
class SimBAState(State):
    """Where a row stands.

    Attributes:
        x_next: (B, C, H, W), what the next round queries.
        here: (B, C, H, W), x and the directions kept so far.
        best: (B,), the loss there; -inf before the first query.
        order: (B, N) int32, the directions in the order in which they are tried.
        place: (B,) int64, how many of them were done.
        other: (B, C, H, W), the other side of the direction under way; equal to `here` where there is none left.
    """

    x_next: Tensor
    here: Tensor
    best: Tensor
    order: Tensor
    place: Tensor
    other: Tensor


@register_attack("simba")
@dataclass(frozen=True, slots=True, kw_only=True)
class SimBA(Budgeted):
    """Scores only: tries each pixel of each channel in random order, a step up, then a step down.

    Source: Guo et al. 2019, arXiv:1905.07121, Algorithm 1, with the pixel basis.
    Differs: what is kept is projected into eps; the loss is the margin of logits (the paper: the probability of y,
    which float32 rounds to 1); a side that changes nothing, because it leads out of [0, 1] or eps, is not asked; after
    the last direction the order begins again.
    """

    step_size: float = 0.2  # epsilon of the paper, in L2
    loss: Loss = Margin()
    sees: ClassVar[Sees] = "scores"
    takes_goal: ClassVar[bool] = True
    name: ClassVar[str] = "simba"

    def __post_init__(self) -> None:
        Budgeted.__post_init__(self)
        if not 0 < self.step_size < math.inf:
            raise SpecError(f"{self.name}: step_size must be positive, got {self.step_size}.")

    def kept(self, height: int, width: int) -> tuple[int, int]:
        """How many vectors of the basis along each edge are tried."""
        return height, width

    def basis(self, size: int) -> Tensor:
        """(size, size): orthonormal rows along an edge; a direction is the product of one of each edge."""
        return torch.eye(size)

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> SimBAState:  # fmt: skip
        count = x.shape[1] * math.prod(self.kept(*x.shape[2:]))
        order = rng.words(count, "simba", device=x.device).argsort(dim=1, stable=True).int()
        far = x.new_full((len(x),), -torch.inf)
        return SimBAState.start(
            x,
            y,
            threat,
            rng,
            x_next=x,
            here=x,
            best=far,
            order=order,
            place=torch.zeros_like(y) - 1,
            other=x,
            goal=goal,
        )

    def step(self, oracle: QueryModel, s: State) -> SimBAState:
        """Query the clean image first; then a side, kept where the loss is larger; then the other or the next one."""
        assert isinstance(s, SimBAState)
        logits = oracle.logits(s.x_next)
        gain = s.aimed(self.loss)(logits, s.y).to(s.x)
        better = gain > s.best
        s = replace(
            s, x_adv=s.x_next, logits=logits, i=s.i + 1, best=torch.maximum(gain, s.best),
            here=torch.where(per_row(better, s.x), s.x_next, s.here),
        )  # fmt: skip
        turn = ~better & _differ(s.other, s.here)
        done = replace(s, place=s.place + 1)
        up, down = self._sides(done)
        idle = ~_differ(up, s.here)
        first = torch.where(per_row(idle, s.x), down, up)
        second = torch.where(per_row(idle, s.x), s.here, down)
        return replace(
            s,
            x_next=torch.where(per_row(turn, s.x), s.other, first),
            other=torch.where(per_row(turn, s.x), s.here, second),
            place=torch.where(turn, s.place, done.place),
        )

    def _sides(self, s: SimBAState) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) twice: a step up and down the direction at `place`, projected."""
        height, width = s.x.shape[2:]
        rows, columns = self.kept(height, width)
        number = s.order.gather(1, (s.place % s.order.shape[1])[:, None])[:, 0].long()
        channel, row, column = number // (rows * columns), number // columns % rows, number % columns
        q = self.basis(height).to(s.x)[row][:, None, :, None] * self.basis(width).to(s.x)[column][:, None, None]
        own = torch.arange(s.x.shape[1], device=s.x.device) == channel[:, None]
        way = self.step_size * q * own[:, :, None, None]
        return s.threat.project(s.x, s.here + way), s.threat.project(s.x, s.here - way)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """(B,) bool: by more than float32 tells apart in [0, 1], in any value."""
    return ((a - b).abs() > 2.0**-23).flatten(1).any(1)


@register_attack("simba-dct")
@dataclass(frozen=True, slots=True, kw_only=True)
class SimBADCT(SimBA):
    """SimBA along the low frequencies of the discrete cosine transform, each channel on its own.

    Source: as SimBA, section 3.2: the low part of the frequencies along each edge (1/8 on ImageNet).
    """

    frequencies: float = 0.5  # share of them along each edge
    name: ClassVar[str] = "simba-dct"

    def __post_init__(self) -> None:
        SimBA.__post_init__(self)
        if not 0 < self.frequencies <= 1:
            raise SpecError(f"simba-dct: frequencies is a share above 0 and up to 1, got {self.frequencies}.")

    def kept(self, height: int, width: int) -> tuple[int, int]:
        """The lowest of them."""
        return math.ceil(self.frequencies * height), math.ceil(self.frequencies * width)

    def basis(self, size: int) -> Tensor:
        """Cosines."""
        return cosines(size)
