"""Fast minimum-norm attack (FMN): walks along the decision boundary while the ball it may use shrinks and grows.

It leaves the threat model on purpose: outside it finds the other side of the boundary first, then comes nearer. In L2
this breaks examples at which ascents that stay inside the ball end in a poor maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustgen.attacks.base import Query, QueryModel, State
from robustgen.attacks.losses import Margin, TargetedMargin, ranked_classes
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel, per_row

__all__ = ["FMN", "FMNT", "FMNState"]

_ORDER: dict[Norm, float] = {"linf": math.inf, "l2": 2, "l1": 1}
_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
_GAMMA = (0.2, 0.01)  # first and last share by which the radius changes in a step
_LAST_STEP = 0.05  # last step length, in eps
_TINY = 1e-12


@dataclass(kw_only=True)
class FMNState(State):
    """`x_next` (B, C, H, W) is queried by the next round; `target` (B,) is the class aimed at, or y.

    `radius` of the ball and `best`, the distance of the nearest misclassified point, are (B,), +inf until there is one.
    """

    x_next: Tensor
    radius: Tensor
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
    """

    steps: int = 40
    restarts: int = 1
    first_step: float = 4.0  # length of the first step, in eps

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

    def init(self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng) -> FMNState:
        start = threat.random_start(x, rng, surface=threat.norm != "l1")
        far = x.new_full((len(x),), math.inf)
        return FMNState.start(x, y, threat, rng, x_next=start, radius=far, best=far, target=self.aim(oracle, x, y, rng))

    def step(self, oracle: QueryModel, s: State) -> FMNState:
        """Query x + delta, change the radius by whether it is misclassified, and take a step inside that radius."""
        assert isinstance(s, FMNState)
        query = oracle.grad(s.x_next, s.y, lambda logits, y: _loss(logits, y, s.target))
        anneal = (1 + torch.cos(math.pi * s.i / self.steps)) / 2  # from 1 to 0
        gamma = _GAMMA[1] + (_GAMMA[0] - _GAMMA[1]) * anneal
        alpha = (_LAST_STEP + (self.first_step - _LAST_STEP) * anneal) * s.threat.eps
        best, radius = _resize(s, query, gamma)
        moved = s.x_next + per_row(alpha, s.x) * s.threat.steepest(_free(s.x_next, query.grad))
        return replace(
            s,
            x_adv=s.x_next,
            logits=query.logits,
            x_next=s.threat.project(s.x, moved, radius.clamp(min=s.threat.eps)),
            radius=radius,
            best=best,
            i=s.i + 1,
        )


def _loss(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(B,) z_t - z_y; for rows without a target, with the largest wrong logit as z_t."""
    return torch.where(target == y, Margin()(logits, y), TargetedMargin()(logits, y, target))


def _free(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient without the pixels that stand at the end of [0, 1] to which it pushes them."""
    stuck = ((x >= 1) & (grad > 0)) | ((x <= 0) & (grad < 0))
    return torch.where(stuck, 0.0, grad)


def _resize(s: FMNState, query: Query, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Lines 7 to 13: the smallest misclassified distance, and the radius of the next step."""
    length = _length(s.x_next - s.x, s.threat.norm)
    wrong = query.logits.argmax(1) != s.y
    best = torch.where(wrong, torch.minimum(length, s.best), s.best)
    to_boundary = (-query.loss).clamp(min=0) / (_length(query.grad, _DUAL[s.threat.norm]) + _TINY)
    grown = torch.where(best.isfinite(), s.radius * (1 + gamma), length + to_boundary)
    shrunk = torch.minimum(torch.where(s.radius.isfinite(), s.radius, length) * (1 - gamma), best)
    return best, torch.where(wrong, shrunk, grown)


def _length(z: Tensor, norm: Norm) -> Tensor:
    """(B,) norm of each row of z (B, C, H, W)."""
    return torch.linalg.vector_norm(z.flatten(1), ord=_ORDER[norm], dim=1)  # type: ignore[no-any-return]


@register_attack("fmn-t")
@dataclass(frozen=True, slots=True, kw_only=True)
class FMNT(FMN):
    """FMN towards one class: one restart for each of the nearest classes.

    Restart r aims at the class with the r-th largest logit among the wrong ones at the clean image; with fewer wrong
    classes than restarts the order begins again, each time from another random start.
    """

    restarts: int = 9

    def aim(self, oracle: QueryModel, x: Tensor, y: Tensor, rng: ExampleRng) -> Tensor:
        ranked = ranked_classes(oracle.logits(x), y)
        if ranked.shape[1] == 0:
            return y
        return ranked.gather(1, (rng.restart.to(y.device) % ranked.shape[1])[:, None]).squeeze(1)
