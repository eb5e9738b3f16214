"""sigma-zero: gradient descent on a smooth count of the pixels that differ, small ones set back as it goes."""

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
from robustgen.threat import Norm, ThreatModel, norm_of, per_row

__all__ = ["SigmaZero", "SigmaZeroState"]

_LAST_STEP = 0.1  # last step length, as a share of the first
_BETA1, _BETA2, _ADAM = 0.9, 0.999, 1e-8  # Adam's own
_TINY = 1e-12


@dataclass(kw_only=True)
class SigmaZeroState(State):
    """`x_next` (B, C, H, W) is queried by the next round; `tau` (B,): changes smaller than this are set back.

    `m` and `v` (B, C, H, W) are the moments of the normalised gradients.
    """

    x_next: Tensor
    m: Tensor
    v: Tensor
    tau: Tensor


@register_attack("sigma-zero")
@dataclass(frozen=True, slots=True, kw_only=True)
class SigmaZero:
    """Algorithm 1, for the fewest pixels that have to change.

    Source: Cina et al. 2024, arXiv:2402.01879, Algorithm 1 with eqs. (4) to (6): step eta from 1 to 0.1 by a cosine,
    sigma = 0.001, tau from 0.3 by 0.01 eta up after a success and down after a failure.
    Differs: pixels are counted, not values of channels: a pixel's change is its L2 length in the smooth count and its
    largest channel against tau. Adam takes the steps, as in the authors' code; on networks that ends much nearer than
    Algorithm 1's own descent along the normalised gradient (adam=0), which is the better one on linear classifiers.
    Restarts after the first begin at random, up to a tenth away in every value.
    """

    steps: int = 300
    restarts: int = 1
    sigma: float = 1e-3
    first_step: float = 1.0  # eta_0, of the largest value's change
    tau: float = 0.3
    tau_step: float = 0.01
    adam: int = 1  # 0 for steps along the gradient itself
    nearest_in: ClassVar[tuple[Norm, ...]] = ("l0",)
    takes_eps: ClassVar[bool] = False
    takes_goal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise SpecError(f"sigma-zero: steps and restarts must be >= 1, got {self.steps} and {self.restarts}.")
        if not (0 < self.sigma < math.inf and 0 < self.first_step < math.inf):
            raise SpecError(f"sigma-zero: sigma and first_step must be positive, got {self.sigma}, {self.first_step}.")
        if not (0 <= self.tau <= 1 and 0 <= self.tau_step <= 1):
            raise SpecError(f"sigma-zero: tau and tau_step lie in [0, 1], got {self.tau} and {self.tau_step}.")
        if self.adam not in (0, 1):
            raise SpecError(f"sigma-zero: adam is 1 or 0, got {self.adam}.")

    @property
    def rounds(self) -> int:
        return self.steps + 1  # the last point is queried too

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> SigmaZeroState:  # fmt: skip
        tau, none = x.new_full((len(x),), self.tau), torch.zeros_like(x)
        return SigmaZeroState.start(x, y, threat, rng, goal=goal, x_next=start_again(x, rng), tau=tau, m=none, v=none)

    def step(self, oracle: QueryModel, s: State) -> SigmaZeroState:
        """Query x + delta, descend on margin and count together, and set small changes back."""
        assert isinstance(s, SigmaZeroState)
        query = oracle.grad(s.x_next, s.y, s.aimed(Margin()))
        wrong = s.reached(query.logits)
        delta = s.x_next - s.x
        fall = self._count_slope(delta) - torch.where(per_row(wrong, s.x), 0.0, query.grad)
        fall = fall / per_row(norm_of(fall, "linf").clamp(min=_TINY), s.x)
        eta = self.first_step * (_LAST_STEP + (1 - _LAST_STEP) * (1 + torch.cos(math.pi * s.i / self.steps)) / 2)
        tau = (s.tau + torch.where(wrong, self.tau_step, -self.tau_step) * eta).clamp(0, 1)
        t = per_row(s.i + 1, s.x).to(fall.dtype)
        m, v = torch.lerp(fall, s.m, _BETA1), torch.lerp(fall.square(), s.v, _BETA2)
        way = m / (1 - _BETA1**t) / ((v / (1 - _BETA2**t)).sqrt() + _ADAM) if self.adam else fall
        moved = (s.x_next - per_row(eta, s.x) * way).clamp(0, 1)
        large = (moved - s.x).abs().amax(1, keepdim=True) >= per_row(tau, s.x)
        return replace(
            s,
            x_adv=s.x_next,
            logits=query.logits,
            x_next=torch.where(large, moved, s.x),
            m=m,
            v=v,
            tau=tau,
            i=s.i + 1,
        )

    def _count_slope(self, delta: Tensor) -> Tensor:
        """(B, C, H, W): gradient of the smooth share of changed pixels, eq. (5): the mean of s / (s + sigma)."""
        length = delta.square().sum(1, keepdim=True)
        pixels = delta[0, 0].numel()
        return 2 * self.sigma * delta / (length + self.sigma).square() / pixels
