"""DeepFool: straight to the nearest boundary of the classifier as it is linearised, again until it is crossed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import Query, QueryModel, State, start_again
from robustgen.attacks.losses import TargetedMargin, ranked_classes
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel, norm_of, per_row

__all__ = ["DeepFool", "DeepFoolState"]

_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2"}
_TINY = 1e-12
_BEYOND = 1e-4  # so much further than the boundary, which clipped steps would come near for ever


@dataclass(kw_only=True)
class DeepFoolState(State):
    """`x_next` (B, C, H, W) is queried by the next round; `r` is the sum of the steps r_i, without overshoot.

    `targets` (B, M) int64: the classes whose boundaries are looked at; `crossed` (B,) bool: the last point is beyond.
    """

    x_next: Tensor
    r: Tensor
    targets: Tensor
    crossed: Tensor

    def ended(self, rounds: int) -> Tensor:
        """(B,) bool: also at the first success."""
        return self.crossed | (self.i >= rounds)


@register_attack("deepfool")
@dataclass(frozen=True, slots=True, kw_only=True)
class DeepFool:
    """Algorithm 2, for a near image in L2 or Linf; quick, and seldom the nearest.

    Source: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, Algorithm 2 with eqs. (8) and (9); section 3.3 for Linf.
    Differs: only the boundaries to the classes with the largest logits at x are looked at, and the classifier is
    linearised at the overshot point, and every step goes 0.0001 further, all as in the authors' code; every point is
    clipped to [0, 1]. It ends at the first success. The paper has eta = 0.02, by which a success lies up to 2 % beyond
    the boundary and comes a little sooner. Restarts after the first begin at random, up to a tenth away in every value.
    """

    steps: int = 50
    restarts: int = 1
    overshoot: float = 0.001  # eta
    classes: int = 9  # wrong ones, as many gradients a step
    nearest_in: ClassVar[tuple[Norm, ...]] = ("l2", "linf")
    takes_eps: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.classes) < 1:
            given = f"{self.steps}, {self.restarts} and {self.classes}"
            raise SpecError(f"deepfool: steps, restarts and classes must be >= 1, got {given}.")
        if not 0 < self.overshoot < 1:
            raise SpecError(f"deepfool: overshoot is a share above 0 and below 1, got {self.overshoot}.")

    @property
    def rounds(self) -> int:
        return self.steps + 1  # the last point is queried too

    def init(self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng) -> DeepFoolState:
        ranked = ranked_classes(oracle.logits(x), y)[:, : self.classes]
        targets = ranked if ranked.shape[1] else y[:, None]
        start = start_again(x, rng)
        return DeepFoolState.start(x, y, threat, rng, x_next=start, r=start - x, targets=targets, crossed=y < 0)

    def step(self, oracle: QueryModel, s: State) -> DeepFoolState:
        """Lines 3 to 10: the nearest of the linearised boundaries, and the step to it; none after a success."""
        assert isinstance(s, DeepFoolState)
        plane = _nearest_plane(oracle, s)
        r = s.r + _step_across(-plane.loss, plane.grad, s.threat.norm)
        return replace(
            s,
            x_adv=s.x_next,
            logits=plane.logits,
            r=r,
            x_next=(s.x + (1 + self.overshoot) * r).clamp(0, 1),
            crossed=plane.logits.argmax(1) != s.y,
            i=s.i + 1,
        )


def _nearest_plane(oracle: QueryModel, s: DeepFoolState) -> Query:
    """f = z_t - z_y with its gradient for the target whose |f| over the dual norm of the gradient is smallest."""
    dual = _DUAL[s.threat.norm]
    best, least = None, torch.zeros(())
    for target in s.targets.unbind(1):
        query = oracle.grad(s.x_next, s.y, partial(TargetedMargin(), target=target))
        distance = query.loss.abs() / (norm_of(query.grad, dual) + _TINY)
        if best is None:
            best, least = query, distance
            continue
        nearer = distance < least
        least = torch.where(nearer, distance, least)
        grad = torch.where(per_row(nearer, s.x), query.grad, best.grad)
        best = Query(torch.where(nearer, query.loss, best.loss), grad, query.logits)
    assert best is not None
    return best


def _step_across(gap: Tensor, w: Tensor, norm: Norm) -> Tensor:
    """(B, C, H, W): the shortest step, in this norm, along which the linear function with gradient w rises by `gap`."""
    size = per_row(norm_of(w, _DUAL[norm]), w)
    length = per_row(gap, w) / (size + _TINY) + _BEYOND
    return length * (w.sign() if norm == "linf" else w / (size + _TINY))
