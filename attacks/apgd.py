"""Auto-PGD (APGD): PGD that chooses its own step size. The first two attacks of AutoAttack.

Every row carries its own iteration, step size and checkpoint, so rows can enter and leave the batch at any time. Linf
and L2 are here; an l1 threat is climbed as `apgd_l1.py` says.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks import apgd_l1
from robustgen.attacks.ascent import A, Ascent, keep_best
from robustgen.attacks.base import SILENT_BY_DEFAULT, Query, QueryModel, State, stay_close
from robustgen.attacks.losses import CE, DLR, Loss, TargetedDLR, ranked_classes
from robustgen.errors import SpecError
from robustgen.fields import NOT_NEGATIVE, check_value
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, per_row

__all__ = ["APGD", "APGDCE", "APGDDLR", "APGDT", "APGDState"]

_ALPHA = 0.75  # weight of the gradient step against the momentum, eq. (3)
_RHO = 0.75  # a window with fewer than this share of increases halves the step, condition 1


@dataclass(kw_only=True)
class APGDState(Ascent):
    """Algorithm 1 in mid-flight, row by row. Image tensors are (B, C, H, W), the others (B,)."""

    x_prev: Tensor  # x^(k-1) of the momentum term
    f_prev: Tensor  # loss of the iterate before
    f_max_checked: Tensor  # f_max at the last checkpoint
    rises: Tensor  # increases of the loss since the last checkpoint
    halved: Tensor  # bool: the last checkpoint halved eta
    window: Tensor  # iterations from the last checkpoint to the next
    since: Tensor  # iterations since the last checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class APGD:
    """Algorithm 1 with some loss; `aim` is what APGD-T adds.

    Source: Croce & Hein 2020, arXiv:2003.01690, Algorithm 1, eq. (3); checkpoints of section 3.1. For L1, the source
    that `apgd_l1.py` names.
    Differs: the engine drops a row when it is broken; the paper runs all iterations. With `patience` a restart may end
    early. Three habits of the reference implementation are kept, since the field's figures rest on them: condition 2
    is off at the first checkpoint; the first comparison of losses is against 0; after a return to x_max the momentum
    still uses the iterate that stood before it.
    """

    steps: int = 100
    restarts: int = 1
    loss: Loss = CE()
    patience: int = 0  # queries between two looks at whether a restart is worth going on with; 0 for no look
    closeness: float = field(default=0.0, metadata=SILENT_BY_DEFAULT)  # weight of the squared distance to x
    takes_goal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise SpecError(f"apgd: steps and restarts must be >= 1, got {self.steps} and {self.restarts}.")
        if self.patience < 0:
            raise SpecError(f"apgd: patience must be >= 0, got {self.patience}.")
        check_value("apgd: closeness", self.closeness, NOT_NEGATIVE)

    @property
    def rounds(self) -> int:
        return self.steps + 1  # the start is a point as well

    def aim(self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng) -> Tensor:
        """(B,) int64: the class that the loss aims at; y where it aims at none."""
        return y

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> Ascent:  # fmt: skip
        target = self.aim(oracle, x, y, threat, rng) if goal is None else goal
        if threat.norm == "l1":
            return apgd_l1.start(x, y, threat, rng, target, goal)
        return _start(x, y, threat, rng, target, self.steps, goal)

    def step(self, oracle: QueryModel, s: State) -> Ascent:
        """Query x^(k+1), update the best point and the step size, and propose x^(k+2)."""
        assert isinstance(s, Ascent)
        query = oracle.grad(s.x_next, s.y, s.aimed(self.loss, s.target))
        query = stay_close(query, s.x_next, s.x, self.closeness)
        if isinstance(s, apgd_l1.SparseAscent):
            return self._give_up(apgd_l1.climb(s, query, self.steps))
        assert isinstance(s, APGDState)
        return self._give_up(_climb(s, query, self.steps))

    def _give_up(self, s: A) -> A:
        """End the restarts that would not arrive at the pace of the last `patience` queries.

        The gap to the target closes ever more slowly, so a row that would not arrive at an even pace hardly ever does,
        and most of all queries go into such rows.
        """
        if not self.patience:
            return s
        due = (s.i > 0) & (s.i % self.patience == 0)
        looks_left = (self.rounds - s.i) / self.patience
        hopeless = due & (s.gap_min > looks_left * (s.gap_seen - s.gap_min))
        return replace(s, i=torch.where(hopeless, self.rounds, s.i), gap_seen=torch.where(due, s.gap_min, s.gap_seen))


def _start(
    x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, target: Tensor, steps: int, goal: Tensor | None
) -> APGDState:
    start = threat.random_start(x, rng, surface=True)
    zero = x.new_zeros(len(x))
    return APGDState.start(
        x, y, threat, rng,
        x_next=start, x_prev=start, x_max=start, grad_max=torch.zeros_like(x),
        f_max=zero - torch.inf, f_prev=zero, f_max_checked=zero, rises=zero,
        eta=zero + 2 * threat.eps, halved=torch.ones_like(y, dtype=torch.bool),
        window=torch.full_like(y, max(int(0.22 * steps), 1)), since=torch.zeros_like(y),
        target=target, gap_seen=zero, gap_min=zero + torch.inf, goal=goal,
    )  # fmt: skip


def _climb(s: APGDState, query: Query, steps: int) -> APGDState:
    """Take in what x^(k+1) answered, and propose x^(k+2)."""
    first = s.i == 0
    s = keep_best(s, query)
    s.since = torch.where(first, 0, s.since + 1)
    s.rises = s.rises + ((query.loss > s.f_prev) & ~first)
    s.f_prev = torch.where(first, 0, query.loss)
    s.f_max_checked = torch.where(first, query.loss, s.f_max_checked)
    x_k, grad = _checkpoint(s, query, steps)
    x_next = _propose(s, x_k, grad, first)
    return replace(s, x_adv=s.x_next, logits=query.logits, x_prev=x_k, x_next=x_next, i=s.i + 1)


def _checkpoint(s: APGDState, query: Query, steps: int) -> tuple[Tensor, Tensor]:
    """Conditions 1 and 2: halve eta and go back to the best point where progress has stopped; updates s."""
    due = s.since == s.window
    oscillates = s.rises <= _RHO * s.window
    stagnates = ~s.halved & (s.f_max_checked >= s.f_max)
    back = due & (oscillates | stagnates)
    s.eta = torch.where(back, s.eta / 2, s.eta)
    s.halved = torch.where(due, back, s.halved)
    s.f_max_checked = torch.where(due, s.f_max, s.f_max_checked)
    shorter = (s.window - max(int(0.03 * steps), 1)).clamp(min=max(int(0.06 * steps), 1))
    s.window = torch.where(due, shorter, s.window)
    s.since = torch.where(due, 0, s.since)
    s.rises = torch.where(due, 0, s.rises)
    reset = per_row(back, s.x)
    return torch.where(reset, s.x_max, s.x_next), torch.where(reset, s.grad_max, query.grad)


def _propose(s: APGDState, x_k: Tensor, grad: Tensor, first: Tensor) -> Tensor:
    """Eq. (3): a projected step z, then x_k + alpha (z - x_k) + (1 - alpha)(x_k - x_{k-1}), projected."""
    z = s.threat.project(s.x, x_k + per_row(s.eta, s.x) * s.threat.steepest(grad))
    a = per_row(torch.where(first, 1.0, _ALPHA), s.x)
    return s.threat.project(s.x, x_k + a * (z - x_k) + (1 - a) * (x_k - s.x_prev))


@register_attack("apgd-ce")
@dataclass(frozen=True, slots=True, kw_only=True)
class APGDCE(APGD):
    """APGD on the cross-entropy."""


@register_attack("apgd-dlr")
@dataclass(frozen=True, slots=True, kw_only=True)
class APGDDLR(APGD):
    """APGD on the difference of logits ratio, eq. (6)."""

    loss: Loss = DLR()


@register_attack("apgd-t")
@dataclass(frozen=True, slots=True, kw_only=True)
class APGDT(APGD):
    """APGD on the targeted difference of logits ratio, eq. (7): one restart for each of the nearest classes.

    Restart r aims at the class with the r-th largest logit among the wrong ones at the clean image, as AutoAttack does.
    With fewer wrong classes than restarts the order begins again, each time from another random start. With a goal
    every restart aims at that class, each from another start.
    """

    restarts: int = 9
    loss: Loss = TargetedDLR()
    skip: int = 0  # nearest classes left out at first, where a stage before this one aimed at them

    def __post_init__(self) -> None:
        APGD.__post_init__(self)  # a dataclass with slots is a new class, which super() without arguments does not know
        if self.skip < 0:
            raise SpecError(f"apgd-t: skip must be >= 0, got {self.skip}.")

    def aim(self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng) -> Tensor:
        targets = self.order(oracle, x, y, threat)
        if targets.shape[1] == 0:
            return y
        rank = (self.skip + rng.restart.to(y.device)) % targets.shape[1]
        return targets.gather(1, rank[:, None]).squeeze(1)

    def order(self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        """(B, M) int64: the classes to aim at, in this order; no column where there is no wrong class."""
        return ranked_classes(oracle.logits(x), y)
