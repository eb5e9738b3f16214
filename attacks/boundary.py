"""The Boundary Attack: a random walk along the decision boundary, each step a little nearer to the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.attacks.decision import OWN, TINY, DecisionBased, DecisionState, Phase
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, norm_of, per_row

__all__ = ["Boundary", "BoundaryState"]

_WALK, _LOOK = OWN, OWN + 1
_EVERY = 10  # of so many steps one is a look at the orthogonal step alone
_WANTED = {_WALK: 0.25, _LOOK: 0.5}  # share of steps that should succeed
_GAIN = {_WALK: 0.1, _LOOK: 0.5}  # how much one answer changes a step length, in its logarithm


@dataclass(kw_only=True)
class BoundaryState(DecisionState):
    """`delta` (B,): length of the orthogonal step, `epsilon` (B,): of the one towards x; both in distances to x."""

    delta: Tensor
    epsilon: Tensor


@register_attack("boundary")
@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary(DecisionBased):
    """Labels only: a step along the sphere around x, then one towards x, kept where it is still misclassified.

    Source: Brendel et al. 2018, arXiv:1712.04248, Algorithm 1 and section 2.3, with delta adjusted until half of the
    orthogonal steps succeed, and epsilon by the success of the whole steps.
    Differs: the start is bisected first, as implementations do; orthogonal steps alone are looked at once in ten
    steps, and a whole step costs one query; each answer changes a length a little, towards half and a quarter of
    successes; no end where epsilon is small, the budget is the end; starts are noise of several grains.
    """

    delta: float = 0.1  # first orthogonal step
    epsilon: float = 0.1  # first step towards x
    name: ClassVar[str] = "boundary"

    def __post_init__(self) -> None:
        DecisionBased.__post_init__(self)
        if not (0 < self.delta < 1 and 0 < self.epsilon < 1):
            raise SpecError(
                f"boundary: delta and epsilon are parts of the distance, above 0 and below 1, got {self.delta} and "
                f"{self.epsilon}."
            )

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **common: Any) -> BoundaryState:
        delta, epsilon = x.new_full((len(x),), self.delta), x.new_full((len(x),), self.epsilon)
        return BoundaryState.start(x, y, threat, rng, **common, delta=delta, epsilon=epsilon)

    def learn(self) -> Sequence[Phase]:
        return _learn_walk, _learn_look

    def propose(self) -> Sequence[Phase]:
        return _propose_walk, _propose_look

    def arrive(self, s: BoundaryState) -> BoundaryState:
        return replace(s, phase=_next_phase(s))


def _next_phase(s: BoundaryState) -> Tensor:
    return torch.where(s.i % _EVERY == 0, _LOOK, _WALK)


def _along_the_sphere(s: BoundaryState) -> Tensor:
    """(B, C, H, W): from `here` by delta d, orthogonal to x - here, back onto the sphere of radius d around x."""
    gap = s.x - s.here
    d = norm_of(gap, "l2").clamp(min=TINY)
    eta = s.rng.normal(s.x.shape[1:], "walk", s.i, s.x.device).to(s.x)
    eta = eta - per_row((eta * gap).sum((1, 2, 3)) / d.square(), s.x) * gap
    eta = eta * per_row(s.delta * d / norm_of(eta, "l2").clamp(min=TINY), s.x)
    return s.x + (eta - gap) / per_row((1 + s.delta.square()).sqrt(), s.x)


def _propose_look(s: BoundaryState) -> BoundaryState:
    return replace(s, x_next=_along_the_sphere(s).clamp(0, 1))


def _propose_walk(s: BoundaryState) -> BoundaryState:
    """The orthogonal step, then epsilon of the way to x."""
    point = _along_the_sphere(s)
    return replace(s, x_next=(point + per_row(s.epsilon, s.x) * (s.x - point)).clamp(0, 1))


def _changed(length: Tensor, s: BoundaryState, phase: int) -> Tensor:
    """Longer after a success, shorter after a failure, in balance at the wanted share."""
    return (length * torch.exp(_GAIN[phase] * (s.wrong.to(length) - _WANTED[phase]))).clamp(max=0.5)


def _learn_look(s: BoundaryState) -> BoundaryState:
    return replace(s, delta=_changed(s.delta, s, _LOOK), phase=_next_phase(s))


def _learn_walk(s: BoundaryState) -> BoundaryState:
    here = torch.where(per_row(s.wrong, s.x), s.x_next, s.here)
    return replace(s, here=here, epsilon=_changed(s.epsilon, s, _WALK), phase=_next_phase(s))
