"""Losses that attacks ascend: (logits (B, K), y (B,), target (B,) or None) -> (B,), larger is closer to success.

Where only one class counts as success, the goal of a row, an attack ascends `towards(logits, goal)` instead. All are
defined for any K >= 1. Where the formula of the paper needs a logit that does not exist, the substitute is stated, and
`protocol(K)` names it, so that a record says what was really run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CE",
    "DLR",
    "LOSSES",
    "Loss",
    "LossFn",
    "Margin",
    "ProbabilityMargin",
    "TargetedDLR",
    "TargetedMargin",
    "goal_margin",
    "margin",
    "ranked_classes",
]

LossFn = Callable[[Tensor, Tensor], Tensor]

_TINY = 1e-12


class Loss(Protocol):
    """A frozen dataclass: callable, with the name that a protocol string prints for K classes."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor: ...

    def towards(self, logits: Tensor, goal: Tensor) -> Tensor:
        """(B,) what is ascended where the prediction must become `goal` (B,) int64."""

    def protocol(self, classes: int) -> str: ...


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _best_other(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) largest logit of a class other than y; a very negative number when there is only one class."""
    return logits.scatter(1, y[:, None], -torch.finfo(logits.dtype).max).amax(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) z_y - max_{i != y} z_i: positive while the prediction is right; +inf with one class."""
    if logits.shape[1] == 1:
        return torch.full_like(logits[:, 0], math.inf)
    return _at(logits, y) - _best_other(logits, y)


def goal_margin(logits: Tensor, goal: Tensor) -> Tensor:
    """(B,) max_{i != t} z_i - z_t for the goal t: positive while another class is predicted; -inf with one class."""
    return -margin(logits, goal)


def ranked_classes(logits: Tensor, y: Tensor) -> Tensor:
    """(B, K - 1) the classes other than y, largest logit first: the order in which targets are tried."""
    return logits.scatter(1, y[:, None], -math.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]


@dataclass(frozen=True, slots=True)
class CE:
    """Cross-entropy; towards a goal log p_t (Kurakin et al. 2017, arXiv:1607.02533, section 2.3)."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none")

    def towards(self, logits: Tensor, goal: Tensor) -> Tensor:
        return -F.cross_entropy(logits, goal, reduction="none")

    def protocol(self, classes: int) -> str:
        return "ce"


@dataclass(frozen=True, slots=True)
class Margin:
    """max_{i != y} z_i - z_y; towards a goal z_t - max_{i != t} z_i (Carlini & Wagner 2017, arXiv:1608.04644, f_6)."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        if logits.shape[1] == 1:
            return 0 * logits[:, 0]
        return _best_other(logits, y) - _at(logits, y)

    def towards(self, logits: Tensor, goal: Tensor) -> Tensor:
        return -Margin()(logits, goal)

    def protocol(self, classes: int) -> str:
        return "margin"


@dataclass(frozen=True, slots=True)
class TargetedMargin:
    """z_t - z_y; towards a goal z_t - max_{i != t} z_i, since a third class would be no success."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        if target is None or logits.shape[1] == 1:
            return Margin()(logits, y)
        return _at(logits, target) - _at(logits, y)

    def towards(self, logits: Tensor, goal: Tensor) -> Tensor:
        return Margin().towards(logits, goal)

    def protocol(self, classes: int) -> str:
        return "margin-t"


@dataclass(frozen=True, slots=True)
class DLR:
    """Difference of logits ratio, -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)).

    Source: Croce & Hein 2020, arXiv:2003.01690, eq. (6). Substitute with fewer than 3 classes: the margin. Towards a
    goal it is the targeted form.
    """

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        if logits.shape[1] < 3:
            return Margin()(logits, y)
        top = logits.topk(3, dim=1).values
        return Margin()(logits, y) / (top[:, 0] - top[:, 2] + _TINY)

    def towards(self, logits: Tensor, goal: Tensor) -> Tensor:
        return TargetedDLR().towards(logits, goal)

    def protocol(self, classes: int) -> str:
        return "dlr" if classes >= 3 else "dlr:margin"


@dataclass(frozen=True, slots=True)
class TargetedDLR:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2).

    Source: Croce & Hein 2020, arXiv:2003.01690, eq. (7). Substitutes: with 3 classes the scale z_(1) - z_(3); with
    fewer the targeted margin.
    Differs: towards a goal max_{i != t} z_i stands in place of z_y, since a third class would be no success.
    """

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        return self._scaled(TargetedMargin()(logits, y, target), logits)

    def towards(self, logits: Tensor, goal: Tensor) -> Tensor:
        return self._scaled(Margin().towards(logits, goal), logits)

    def _scaled(self, rise: Tensor, logits: Tensor) -> Tensor:
        if logits.shape[1] < 3:
            return rise
        top = logits.topk(min(4, logits.shape[1]), dim=1).values
        return rise / (top[:, 0] - top[:, 2:].mean(1) + _TINY)

    def protocol(self, classes: int) -> str:
        return "dlr-t" if classes >= 4 else "dlr-t:z1-z3" if classes == 3 else "dlr-t:margin"


@dataclass(frozen=True, slots=True)
class ProbabilityMargin:
    """max_{i != y} p_i - p_y with p the softmax of the logits (PMA; arXiv:2411.15210)."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        return Margin()(logits.softmax(1), y)

    def towards(self, logits: Tensor, goal: Tensor) -> Tensor:
        return Margin().towards(logits.softmax(1), goal)

    def protocol(self, classes: int) -> str:
        return "pm"


LOSSES: dict[str, Loss] = {
    "ce": CE(),
    "dlr": DLR(),
    "dlr-t": TargetedDLR(),
    "margin": Margin(),
    "margin-t": TargetedMargin(),
    "pm": ProbabilityMargin(),
}
