"""sigma-zero: gradient descent on a smooth count of the pixels that differ, small ones set back as it goes.

At the end pixels of the sparsest success are set back one by one, the least useful first. Adam's long steps often leave
a pixel or two that the others can do without; a few queries find them, where more descent does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import Query, QueryModel, State, start_again
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

    `m` and `v` (B, C, H, W) are the moments of the normalised gradients. `kept` (B, C, H, W) is the success with the
    fewest changed pixels, `count` (B,) their number, +inf until there is one, and `slope` (B, C, H, W) the loss's
    gradient there; `tried` (B, 1, H, W) bool: pixels that could not be set back.
    """

    x_next: Tensor
    m: Tensor
    v: Tensor
    tau: Tensor
    kept: Tensor
    count: Tensor
    slope: Tensor
    tried: Tensor

    def ended(self, rounds: int) -> Tensor:
        """Also where no pixel is left to set back."""
        return (self.i >= rounds) | (self.count.isfinite() & ~self.candidates().flatten(1).any(1))

    def candidates(self) -> Tensor:
        """(B, 1, H, W) bool: changed pixels of `kept` that nobody has tried to set back."""
        return _changed(self.kept, self.x) & ~self.tried


@register_attack("sigma-zero")
@dataclass(frozen=True, slots=True, kw_only=True)
class SigmaZero:
    """Algorithm 1, for the fewest pixels that have to change.

    Source: Cina et al. 2024, arXiv:2402.01879, Algorithm 1 with eqs. (4) to (6): step eta from 1 to 0.1 by a cosine,
    sigma = 0.001, tau from 0.3 by 0.01 eta up after a success and down after a failure.
    Differs: pixels are counted, not values of channels: a pixel's change is its L2 length in the smooth count and its
    largest channel against tau. Adam takes the steps, as in the authors' code; on networks that ends much nearer than
    Algorithm 1's own descent along the normalised gradient (adam=0), which is the better one on linear classifiers.
    Restarts after the first begin at random, up to a tenth away in every value. The last `prune` steps, a quarter of
    all at most, set single pixels of the sparsest success back, the one first whose change adds least to the loss to
    first order; in every other of them the rest go to the ends of [0, 1]. A row without a success descends on.
    """

    steps: int = 300
    restarts: int = 1
    sigma: float = 1e-3
    first_step: float = 1.0  # eta_0, of the largest value's change
    tau: float = 0.3
    tau_step: float = 0.01
    adam: int = 1  # 0 for steps along the gradient itself
    prune: int = 20  # of the steps
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
        if self.prune < 0:
            raise SpecError(f"sigma-zero: prune must be >= 0, got {self.prune}.")

    @property
    def rounds(self) -> int:
        return self.steps + 1  # the last point is queried too

    @property
    def descent(self) -> int:
        """Steps before the pruning."""
        return self.steps - min(self.prune, self.steps // 4)

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> SigmaZeroState:  # fmt: skip
        tau, none, untried = x.new_full((len(x),), self.tau), torch.zeros_like(x), torch.zeros_like(x[:, :1]).bool()
        return SigmaZeroState.start(
            x, y, threat, rng, goal=goal, x_next=start_again(x, rng), tau=tau, m=none, v=none,
            kept=x, count=torch.full_like(tau, math.inf), slope=none, tried=untried,
        )  # fmt: skip

    def step(self, oracle: QueryModel, s: State) -> SigmaZeroState:
        """Query x + delta, descend on margin and count together, and set small changes back; at the end prune."""
        assert isinstance(s, SigmaZeroState)
        query = oracle.grad(s.x_next, s.y, s.aimed(Margin()))
        queried = replace(self._keep(s, query), x_adv=s.x_next, logits=query.logits, i=s.i + 1)
        moved = self._descend(queried, query.grad)
        pruning = queried.count.isfinite() & (queried.i > self.descent)
        fewer = _without_least_used(queried, self._saturated(queried.i))
        return replace(moved, x_next=torch.where(per_row(pruning, s.x), fewer, moved.x_next))

    def _saturated(self, i: Tensor) -> Tensor:
        """(B,) bool: the i-th query moves the other pixels to the ends of [0, 1] as it sets one back."""
        return (i > self.descent) & ((i - self.descent) % 2 == 0)

    def _keep(self, s: SigmaZeroState, query: Query) -> SigmaZeroState:
        """Remember the sparsest success, and which pixel was set back in vain, whatever the others did."""
        changed = _changed(s.x_next, s.x)
        count = changed.flatten(1).sum(1).to(s.count)
        fewer = s.reached(query.logits) & (count < s.count)
        back = _changed(s.kept, s.x) & ~changed & per_row(self._saturated(s.i) & ~fewer, s.x)
        return replace(
            s,
            kept=torch.where(per_row(fewer, s.x), s.x_next, s.kept),
            count=torch.where(fewer, count, s.count),
            slope=torch.where(per_row(fewer, s.x), query.grad, s.slope),
            tried=s.tried | back,
        )

    def _descend(self, s: SigmaZeroState, grad: Tensor) -> SigmaZeroState:
        """Algorithm 1, lines 6 to 14, from the point that was queried."""
        wrong, past = s.reached(s.logits), s.i - 1
        delta = s.x_next - s.x
        fall = self._count_slope(delta) - torch.where(per_row(wrong, s.x), 0.0, grad)
        fall = fall / per_row(norm_of(fall, "linf").clamp(min=_TINY), s.x)
        share = (past / self.descent).clamp(max=1)
        eta = self.first_step * (_LAST_STEP + (1 - _LAST_STEP) * (1 + torch.cos(math.pi * share)) / 2)
        tau = (s.tau + torch.where(wrong, self.tau_step, -self.tau_step) * eta).clamp(0, 1)
        t = per_row(s.i, s.x).to(fall.dtype)
        m, v = torch.lerp(fall, s.m, _BETA1), torch.lerp(fall.square(), s.v, _BETA2)
        way = m / (1 - _BETA1**t) / ((v / (1 - _BETA2**t)).sqrt() + _ADAM) if self.adam else fall
        moved = (s.x_next - per_row(eta, s.x) * way).clamp(0, 1)
        large = (moved - s.x).abs().amax(1, keepdim=True) >= per_row(tau, s.x)
        return replace(s, x_next=torch.where(large, moved, s.x), m=m, v=v, tau=tau)

    def _count_slope(self, delta: Tensor) -> Tensor:
        """(B, C, H, W): gradient of the smooth share of changed pixels, eq. (5): the mean of s / (s + sigma)."""
        length = delta.square().sum(1, keepdim=True)
        pixels = delta[0, 0].numel()
        return 2 * self.sigma * delta / (length + self.sigma).square() / pixels


def _changed(point: Tensor, x: Tensor) -> Tensor:
    """(B, 1, H, W) bool: pixels at which any channel differs."""
    return (point != x).any(1, keepdim=True)


def _without_least_used(s: SigmaZeroState, saturated: Tensor) -> Tensor:
    """(B, C, H, W): `kept` with the candidate set back that adds least to the loss; `kept` where there is none.

    In rows that are `saturated` (B,) the other changed pixels go to the end of [0, 1] to which the slope pushes them.
    """
    pushed = torch.where(s.slope > 0, 1.0, torch.where(s.slope < 0, 0.0, s.kept))
    rest = torch.where(_changed(s.kept, s.x) & per_row(saturated, s.x), pushed, s.kept)
    use = (s.slope * (rest - s.x)).sum(1, keepdim=True)
    use = torch.where(s.candidates(), use, math.inf).flatten(1)
    least = torch.zeros_like(use, dtype=torch.bool).scatter(1, use.argmin(1, keepdim=True), True)
    return torch.where(least.view_as(s.tried) & s.candidates(), s.x, rest)
