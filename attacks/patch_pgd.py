"""Patch-PGD: gradient ascent inside one window, after a search for the window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import QueryModel, State
from robustgen.attacks.losses import Loss, Margin
from robustgen.errors import SpecError
from robustgen.fields import POSITIVE, WHOLE, check_value
from robustgen.patch_threat import PatchThreat
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel, per_row

__all__ = ["PatchPGD", "PatchPGDState"]

_MOMENTUM = 0.9
_LAST_STEP = 0.1  # of the first one, at the end of a window's steps


@dataclass(kw_only=True)
class PatchPGDState(State):
    """Where a row stands.

    Attributes:
        x_next: (B, C, H, W), what the next round queries.
        corner: (B, C, H, W), 1 where the gradient at x is positive, else 0: the best content to first order.
        tried: (B, P) int64, the windows to be tried, best first by that gradient; by loss once all were.
        loss: (B, P), the loss with `corner` in each window; -inf before it was asked.
        velocity: (B, C, H, W), the running direction of the window under way.
        keep, steps: those of the attack, which decide when a row ends.
    """

    threat: PatchThreat
    x_next: Tensor
    corner: Tensor
    tried: Tensor
    loss: Tensor
    velocity: Tensor
    keep: int
    steps: int

    def ended(self, rounds: int) -> Tensor:
        """After the last window that the image has room for."""
        count = self.tried.shape[1]
        return self.i >= 1 + count + min(self.keep, count) * self.steps


@register_attack("patch-pgd")
@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPGD:
    """Asks each of many windows by one gradient, then ascends in the best of them, one after the other.

    The gradient at the clean image says what each window could gain to first order: the sum over it of the best change
    that [0, 1] allows. `places` windows, the best ones half a window apart as
    long as there are such, are filled with that best change and
    asked in turn; the `keep` with the largest loss get `steps` steps each, of the sign of a gradient with momentum,
    whose length falls geometrically to a tenth. On a linear classifier of two classes the first one asked is optimal.

    Source: location search and optimisation as in Fu et al. 2022, arXiv:2203.08392, and Karmon et al. 2018,
    arXiv:1801.02608, section 3, in their plainest form; the update is that of MI-FGSM (Dong et al. 2018,
    arXiv:1710.06081, eq. (6) and (7)) inside the window.
    Differs: no clipping to a ball, since the window is free in [0, 1].
    """

    places: int = 128
    keep: int = 8
    steps: int = 20
    step_size: float = 0.3  # the first step, in pixels of [0, 1]
    loss: Loss = Margin()
    restarts: ClassVar[int] = 1
    takes_goal: ClassVar[bool] = True
    serves: ClassVar[tuple[Norm, ...]] = ("patch",)

    def __post_init__(self) -> None:
        for name in ("places", "keep", "steps"):
            check_value(f"patch-pgd: {name}", getattr(self, name), WHOLE)
        check_value("patch-pgd: step_size", self.step_size, POSITIVE)
        if self.keep > self.places:
            raise SpecError(f"patch-pgd: keep must be at most places, got {self.keep} of {self.places}.")

    @property
    def rounds(self) -> int:
        return 1 + self.places + self.keep * self.steps  # the clean image first

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> PatchPGDState:  # fmt: skip
        assert isinstance(threat, PatchThreat)
        rows, columns = threat.places(x)
        count = min(self.places, rows * columns)
        return PatchPGDState.start(
            x, y, threat, rng, goal=goal, x_next=x, corner=x, velocity=torch.zeros_like(x),
            tried=y.new_zeros(len(x), count), loss=x.new_full((len(x), count), -torch.inf),
            keep=self.keep, steps=self.steps,
        )  # fmt: skip

    def step(self, oracle: QueryModel, s: State) -> PatchPGDState:
        """Query the clean image, then each window to be tried, then one step in a window that was kept."""
        assert isinstance(s, PatchPGDState)
        query = oracle.grad(s.x_next, s.y, s.aimed(self.loss))
        count = s.tried.shape[1]
        first, trying = s.i == 0, (s.i > 0) & (s.i <= count)
        s = _rank(s, query.grad, first)
        s = _note(s, query.loss.to(s.x), trying)
        turn = s.i - 1 - count  # which step of all that follow the search; below 0 in it
        moved, velocity = self._ascend(s, query.grad, turn)
        begins = (turn + 1) % self.steps == 0  # in the next window, from its corner
        slot = torch.where(s.i < count, s.i, ((turn + 1) // self.steps).clamp(0, count - 1))
        fresh = (s.i < count) | begins
        window = s.threat.window(s.tried.gather(1, slot[:, None])[:, 0], s.x)
        return replace(
            s, x_adv=s.x_next, logits=query.logits, i=s.i + 1, velocity=torch.where(per_row(fresh, s.x), 0.0, velocity),
            x_next=torch.where(per_row(fresh, s.x), torch.where(window, s.corner, s.x), moved),
        )  # fmt: skip

    def _ascend(self, s: PatchPGDState, grad: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """The point after one step in the window under way, and the new velocity; both (B, C, H, W)."""
        count = s.tried.shape[1]
        window = s.threat.window(s.tried.gather(1, (turn // self.steps).clamp(0, count - 1)[:, None])[:, 0], s.x)
        inside = torch.where(window, grad, 0.0)
        velocity = _MOMENTUM * s.velocity + inside / inside.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-12)
        length = self.step_size * _LAST_STEP ** ((turn % self.steps) / max(1, self.steps - 1))
        return torch.where(window, (s.x_next + per_row(length, s.x) * velocity.sign()).clamp(0, 1), s.x), velocity


def _rank(s: PatchPGDState, grad: Tensor, first: Tensor) -> PatchPGDState:
    """After the clean image: what each window gains to first order, and so which ones are tried."""
    if not first.any():
        return s
    best = (grad > 0).to(s.x)
    gains = s.threat.window_sums((grad * (best - s.x)).sum(1).double())
    apart = -(-s.threat.height // 2), -(-s.threat.width // 2)
    tried = _spread(gains, s.tried.shape[1], apart)
    return replace(
        s, corner=torch.where(per_row(first, s.x), best, s.corner), tried=torch.where(first[:, None], tried, s.tried)
    )


def _spread(gains: Tensor, count: int, apart: tuple[int, int]) -> Tensor:
    """(B, count) int64: windows in order of their gains (B, R, C), those near an earlier one only after all others."""
    rows, columns = gains.shape[1:]
    row, column = torch.arange(rows, device=gains.device), torch.arange(columns, device=gains.device)
    span = (gains.amax((1, 2)) - gains.amin((1, 2)) + 1)[:, None]
    left, chosen = gains.flatten(1).clone(), []
    for _ in range(count):
        best = left.argmax(1)
        chosen.append(best)
        near_row = (row - (best // columns)[:, None]).abs() < apart[0]
        near_column = (column - (best % columns)[:, None]).abs() < apart[1]
        left = left - span * (near_row[:, :, None] & near_column[:, None, :]).flatten(1)
        left.scatter_(1, best[:, None], -torch.inf)
    return torch.stack(chosen, 1)


def _note(s: PatchPGDState, loss: Tensor, trying: Tensor) -> PatchPGDState:
    """Keep the loss of the window that was tried; after the last one put them in order, the largest loss first."""
    if not trying.any():
        return s
    count = s.tried.shape[1]
    slot = (s.i - 1).clamp(0, count - 1)[:, None]
    noted = s.loss.scatter(1, slot, torch.where(trying[:, None], loss[:, None], s.loss.gather(1, slot)))
    order = noted.argsort(dim=1, descending=True, stable=True)
    last = (s.i == count)[:, None]
    return replace(s, loss=noted, tried=torch.where(last, s.tried.gather(1, order), s.tried))
