"""Fast minimum-norm attack (FMN): walks along the decision boundary while the ball it may use shrinks and grows.

It leaves the threat model on purpose: outside it finds the other side of the boundary first, then comes nearer. In L2
this breaks examples at which ascents that stay inside the ball end in a poor maximum. Without an eps it is the paper's
attack and looks for the nearest adversarial image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import Query, QueryModel, State, early_rounds, start_again
from robustgen.attacks.losses import LossFn, Margin, TargetedMargin, ranked_classes
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel, norm_of, per_row

__all__ = ["FMN", "FMNT", "FMNState"]

_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
_GAMMA = (0.2, 0.01)  # first and last share by which the radius changes in a step
_FREE_GAMMA = (0.4, 0.01)  # the same where there is no eps
_LAST_STEP = 0.05  # last step length, in eps
_FREE_STEP = (1.0, 0.01)  # first and last step length in L2 where there is no eps, the paper's
_SHORTEST: dict[Norm, float] = {"l2": 0.1, "l1": 0.3}  # of a first step, where the paper's is too long
_SMALLEST = 1e-9  # radius where there is no eps; a ball of none at all has no direction
_TINY = 1e-12


@dataclass(kw_only=True)
class FMNState(State):
    """`x_next` (B, C, H, W) is queried by the next round; `target` (B,) is the class aimed at, or y.

    `radius` of the ball, `reach`, which it was at first, and `best`, the distance of the nearest misclassified point,
    are (B,), +inf until there is one.
    """

    x_next: Tensor
    radius: Tensor
    reach: Tensor
    best: Tensor
    target: Tensor


@register_attack("fmn")
@dataclass(frozen=True, slots=True, kw_only=True)
class FMN:
    """Algorithm 1, away from the label.

    Source: Pintor et al. 2021, arXiv:2102.12827, Algorithm 1, with cosine annealing of step and radius change.
    Differs: the start is random on the surface of the ball (the paper starts at x), so that restarts differ; the step
    is `first_step` eps long at first and follows the steepest direction of the norm over the pixels that can move (the
    paper: the gradient of unit L2 norm); the radius starts to change by 20 % (the paper: 5 %), since few steps are
    taken; it never falls below eps, since a point inside ends the attack. Norms Linf, L2, L1.
    Without an eps: the paper's start, step and radius, but for the first change of 40 %, by which the tangent distance
    is enlarged too, the signs of the gradient in Linf, and the first step: as long as the first radius, in L2 twice as
    long, at least 1 (0.1 in L2, 0.3 in L1; always 1 in L0); restarts after the first begin at random. In L0 pixels are
    counted, not values of channels.
    """

    steps: int = 40
    restarts: int = 1
    first_step: float = 4.0  # length of the first step, in eps
    nearest_in: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1", "l0")
    takes_eps: ClassVar[bool] = True
    takes_goal: ClassVar[bool] = True
    first_shares: ClassVar[dict[Norm, float]] = {"l2": 2.0}  # without an eps, the first step in first radii
    early: ClassVar[float] = 0.85

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise SpecError(f"fmn: steps and restarts must be >= 1, got {self.steps} and {self.restarts}.")
        if not 0 < self.first_step < math.inf:
            raise SpecError(f"fmn: first_step must be positive, got {self.first_step}.")

    @property
    def rounds(self) -> int:
        return self.steps + 1  # the start is a point as well

    def aim(self, oracle: QueryModel, x: Tensor, y: Tensor, rng: ExampleRng) -> Tensor:
        """(B,) int64: the class aimed at; y for none."""
        return y

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> FMNState:  # fmt: skip
        start = threat.random_start(x, rng, surface=threat.norm != "l1") if threat.bounded else start_again(x, rng)
        far = x.new_full((len(x),), math.inf)
        target = self.aim(oracle, x, y, rng) if goal is None else goal
        return FMNState.start(
            x, y, threat, rng, goal=goal, x_next=start, radius=far, reach=far, best=far, target=target
        )  # fmt: skip

    def step(self, oracle: QueryModel, s: State) -> FMNState:
        """Query x + delta, change the radius by whether it is misclassified, and take a step inside that radius."""
        assert isinstance(s, FMNState)
        query = oracle.grad(s.x_next, s.y, s.aimed(Margin()) if s.goal is not None else _loss_to(s.target))
        anneal = (1 + torch.cos(math.pi * s.i / self.steps)) / 2  # from 1 to 0
        first, last = _GAMMA if s.threat.bounded else _FREE_GAMMA
        gamma = last + (first - last) * anneal
        best, radius = _resize(self._forgetful(s), query, gamma)
        s.reach = torch.where(s.i == 0, radius, s.reach)
        moved = s.x_next + self._way(s, query, anneal)
        return replace(
            s,
            x_adv=s.x_next,
            logits=query.logits,
            x_next=s.threat.project(s.x, moved, radius.clamp(min=s.threat.eps if s.threat.bounded else _SMALLEST)),
            radius=radius,
            best=best,
            i=s.i + 1,
        )

    def _forgetful(self, s: FMNState) -> FMNState:
        """When the exact form begins to answer, no success of a coarser one counts any more: it may lie too near."""
        if s.threat.bounded:
            return s
        begins = s.i == math.ceil(early_rounds(self, s.threat.norm))
        return replace(s, best=torch.where(begins, math.inf, s.best))

    def _way(self, s: FMNState, query: Query, anneal: Tensor) -> Tensor:
        """(B, C, H, W): line 14, the step up the loss, before the projection."""
        grad = _free(s.x_next, query.grad)
        if s.threat.bounded:
            alpha = (_LAST_STEP + (self.first_step - _LAST_STEP) * anneal) * s.threat.eps
            return per_row(alpha, s.x) * s.threat.steepest(grad)
        grad = grad.sign() if s.threat.norm == "linf" else grad
        alpha = _FREE_STEP[1] + (_first_length(s, self.first_shares) - _FREE_STEP[1]) * anneal
        return per_row(alpha / (norm_of(grad, "l2") + _TINY), s.x) * grad


def _loss_to(target: Tensor) -> LossFn:
    """z_t - z_y; for rows without a target, with the largest wrong logit as z_t."""
    return lambda logits, y: torch.where(target == y, Margin()(logits, y), TargetedMargin()(logits, y, target))


def _first_length(s: FMNState, shares: dict[Norm, float]) -> Tensor:
    """(B,): a length in L2, for the first step without an eps; never beyond the diagonal of the box of images."""
    diagonal = math.sqrt(s.x[0].numel())
    if s.threat.norm == "l0":
        return torch.full_like(s.reach, _FREE_STEP[0])
    longest = s.reach * ({"linf": diagonal} | shares).get(s.threat.norm, 1.0)
    return longest.clamp(min=_SHORTEST.get(s.threat.norm, _FREE_STEP[0]), max=diagonal)


def _free(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient without the pixels that stand at the end of [0, 1] to which it pushes them."""
    stuck = ((x >= 1) & (grad > 0)) | ((x <= 0) & (grad < 0))
    return torch.where(stuck, 0.0, grad)


def _resize(s: FMNState, query: Query, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Lines 7 to 13: the smallest misclassified distance, and the radius of the next step."""
    length = norm_of(s.x_next - s.x, s.threat.norm)
    wrong = s.reached(query.logits)
    best = torch.where(wrong, torch.minimum(length, s.best), s.best)
    if s.threat.norm == "l0":
        return best, _resize_l0(s, wrong, best, gamma)
    to_boundary = (-query.loss).clamp(min=0) / (norm_of(query.grad, _DUAL[s.threat.norm]) + _TINY)
    tangent = length + to_boundary
    if not s.threat.bounded:
        tangent = tangent * (1 + gamma)  # a little beyond: on the boundary itself nothing is misclassified
    grown = torch.where(best.isfinite(), s.radius * (1 + gamma), tangent)
    shrunk = torch.minimum(torch.where(s.radius.isfinite(), s.radius, length) * (1 - gamma), best)
    return best, torch.where(wrong, shrunk, grown)


def _resize_l0(s: FMNState, wrong: Tensor, best: Tensor, gamma: Tensor) -> Tensor:
    """The same in pixels: whole ones, at least one more or less, from one at the start (section 2.3)."""
    radius = torch.where(s.radius.isfinite(), s.radius, 1.0)
    grown = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
    shrunk = torch.minimum(torch.minimum(radius - 1, (radius * (1 - gamma)).floor()), best - 1)
    return torch.where(wrong, shrunk, grown).clamp(min=1)


@register_attack("fmn-t")
@dataclass(frozen=True, slots=True, kw_only=True)
class FMNT(FMN):
    """FMN towards one class: one restart for each of the nearest classes.

    Restart r aims at the class with the r-th largest logit among the wrong ones at the clean image; with fewer wrong
    classes than restarts the order begins again, each time from another random start. With a goal every restart aims at
    that class.
    Differs: without an eps the first step in L2 is one first radius and in L1 a quarter of it, since one class is
    farther than the nearest.
    """

    restarts: int = 9
    first_shares: ClassVar[dict[Norm, float]] = {"l1": 0.25}

    def aim(self, oracle: QueryModel, x: Tensor, y: Tensor, rng: ExampleRng) -> Tensor:
        ranked = ranked_classes(oracle.logits(x), y)
        if ranked.shape[1] == 0:
            return y
        return ranked.gather(1, (rng.restart.to(y.device) % ranked.shape[1])[:, None]).squeeze(1)
