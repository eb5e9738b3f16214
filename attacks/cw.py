"""Carlini and Wagner's L2 attack: distance plus c times the margin, with the smallest c that still breaks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import QueryModel, State, start_again
from robustgen.attacks.losses import Margin
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel, per_row

__all__ = ["CW", "CWState"]

_BETA1, _BETA2, _ADAM = 0.9, 0.999, 1e-8  # Adam's own
_INSIDE = 0.999  # how far towards the walls of [0, 1] an image may begin, where tanh has no inverse
_ROUNDS = 2**14  # streams of a round are told apart below this


@dataclass(kw_only=True)
class CWState(State):
    """`w` and its moments `m` and `v` are (B, C, H, W) in the space of tanh; the others (B,).

    `c` weighs the margin, `low` and `high` bracket it, `hit` says whether this c has broken the row.
    """

    w: Tensor
    m: Tensor
    v: Tensor
    c: Tensor
    low: Tensor
    high: Tensor
    hit: Tensor


@register_attack("cw")
@dataclass(frozen=True, slots=True, kw_only=True)
class CW:
    """min ||x' - x||^2 + c f(x') over w with x' = (tanh w + 1) / 2, by Adam, and binary search for c.

    Source: Carlini & Wagner 2017, arXiv:1608.04644, sections V.B (f_6, kappa = 0) and VI.A; towards a goal, or
    untargeted, with the search for c of the authors' code.
    Differs: for few queries c begins at 1 (their code: 0.001), with 200 steps for each from 0.05 down to 0 by a cosine
    (10,000 of 0.01), no early end, and 0.999 in place of 0.999999 where an image meets the walls, beyond which steps of
    w do nothing. A c is large enough where a point of the second half of its steps breaks the row (their code: any);
    the next c begins where the last one ended (their code: at the image again), with moments of 0 and long steps anew.
    Restarts after the first begin at random, up to a tenth away in every value.
    """

    steps: int = 200  # for each c
    searches: int = 9
    restarts: int = 1
    rate: float = 0.05
    c: float = 1.0  # the first
    nearest_in: ClassVar[tuple[Norm, ...]] = ("l2",)
    takes_eps: ClassVar[bool] = False
    takes_goal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.steps, self.searches, self.restarts) < 1:
            given = f"{self.steps}, {self.searches} and {self.restarts}"
            raise SpecError(f"cw: steps, searches and restarts must be >= 1, got {given}.")
        if self.rounds >= _ROUNDS:
            raise SpecError(f"cw: steps times searches must stay below {_ROUNDS}, got {self.rounds}.")
        if not (0 < self.rate < math.inf and 0 < self.c < math.inf):
            raise SpecError(f"cw: rate and c must be positive, got {self.rate} and {self.c}.")

    @property
    def rounds(self) -> int:
        return self.steps * self.searches

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> CWState:  # fmt: skip
        w, zero, none = torch.atanh((2 * start_again(x, rng) - 1) * _INSIDE), x.new_zeros(len(x)), torch.zeros_like(x)
        return CWState.start(
            x, y, threat, rng, goal=goal, w=w, m=none, v=none,
            c=zero + self.c, low=zero, high=zero + math.inf, hit=torch.zeros_like(y, dtype=torch.bool),
        )  # fmt: skip

    def step(self, oracle: QueryModel, s: State) -> CWState:
        """Query x', take a step of Adam; at the end of a search the next c."""
        assert isinstance(s, CWState)
        x_adv = (torch.tanh(s.w) + 1) / 2
        query = oracle.grad(x_adv, s.y, s.aimed(Margin()))
        away = -per_row(s.c * (query.loss < 0), s.x) * query.grad  # c times the gradient of f = max(-margin loss, 0)
        slope = (2 * (x_adv - s.x) + away) * (1 - torch.tanh(s.w).square()) / 2
        t = per_row(s.i % self.steps + 1, s.x).to(slope.dtype)
        m = torch.lerp(slope, s.m, _BETA1)
        v = torch.lerp(slope.square(), s.v, _BETA2)
        rate = self.rate * (1 + torch.cos(math.pi * (t - 1) / self.steps)) / 2
        w = s.w - rate * (m / (1 - _BETA1**t)) / ((v / (1 - _BETA2**t)).sqrt() + _ADAM)
        settled = s.i % self.steps >= self.steps // 2  # long steps at first overshoot, which says nothing of c
        hit = s.hit | (s.reached(query.logits) & settled)
        moved = replace(s, x_adv=x_adv, logits=query.logits, w=w, m=m, v=v, hit=hit, i=s.i + 1)
        return self._search(moved)

    def _search(self, s: CWState) -> CWState:
        """After the last step of a search: halve the bracket of c, or multiply c by 10 where nothing has broken yet."""
        due = s.i % self.steps == 0
        high = torch.where(due & s.hit, torch.minimum(s.high, s.c), s.high)
        low = torch.where(due & ~s.hit, torch.maximum(s.low, s.c), s.low)
        c = torch.where(due, torch.where(high.isfinite(), (low + high) / 2, 10 * s.c), s.c)
        again = per_row(due, s.x)
        return replace(
            s, c=c, low=low, high=high, hit=s.hit & ~due,
            m=torch.where(again, 0.0, s.m), v=torch.where(again, 0.0, s.v),
        )  # fmt: skip
