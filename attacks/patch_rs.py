"""Patch-RS: random search over content and place of a patch. Black box: it sees scores, never gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import Budgeted, QueryModel, Sees, State
from robustgen.errors import SpecError
from robustgen.patch_threat import PatchThreat
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel, per_row

__all__ = ["PatchRS", "PatchRSState"]

_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # share of the budget after which p halves
_PERIOD = 4  # every so many rounds the window moves


@dataclass(kw_only=True)
class PatchRSState(State):
    """Where a row stands.

    Attributes:
        x_next: (B, C, H, W), what the next round queries.
        content: (B, C, h, w), what is in the window of `x_next`.
        place: (B,) int64, where that window is.
        kept, kept_place: content and place of the best so far.
        best: (B,), its margin; +inf before the first query.
    """

    threat: PatchThreat
    x_next: Tensor
    content: Tensor
    place: Tensor
    kept: Tensor
    kept_place: Tensor
    best: Tensor


@register_attack("patch-rs")
@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRS(Budgeted):
    """Scores only: paints a square of one extreme colour in the patch, or moves it; keeps what lowers the margin.

    The square's share of the patch begins at `p_init` and halves as in Square Attack, its schedule stretched over the
    budget; every fourth round moves the window instead, by at most a reach that falls linearly from the whole image to
    one pixel.

    Source: Croce et al. 2022, arXiv:2006.12834 (Sparse-RS), the patches of section 5, image by image; schedule of p as
    in Andriushchenko et al. 2020, arXiv:1912.00049.
    Differs: the first content is vertical stripes; a square that is of its new colour already gets the opposite one, so
    that no query is without news; the period and the reach are ours.
    """

    p_init: float = 0.4
    sees: ClassVar[Sees] = "scores"
    takes_goal: ClassVar[bool] = True
    serves: ClassVar[tuple[Norm, ...]] = ("patch",)
    name: ClassVar[str] = "patch-rs"

    def __post_init__(self) -> None:
        Budgeted.__post_init__(self)
        if not 0 < self.p_init <= 1:
            raise SpecError(f"patch-rs: p_init is a share of the patch in (0, 1], got {self.p_init}.")

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> PatchRSState:  # fmt: skip
        assert isinstance(threat, PatchThreat)
        rows, columns = threat.places(x)
        place = rng.below(torch.full_like(y, rows * columns), "patch-rs-place")
        stripes = (rng.words(x.shape[1] * threat.width, "patch-rs-stripes", device=x.device) & 1).to(x)
        content = stripes.reshape(len(x), x.shape[1], 1, threat.width).expand(-1, -1, threat.height, -1).contiguous()
        return PatchRSState.start(
            x, y, threat, rng, goal=goal, x_next=_paste(x, content, place, threat), content=content, place=place,
            kept=content, kept_place=place, best=x.new_full((len(x),), torch.inf),
        )  # fmt: skip

    def step(self, oracle: QueryModel, s: State) -> PatchRSState:
        """Query the proposal, keep it where the margin falls, and make the next one."""
        assert isinstance(s, PatchRSState)
        logits = oracle.logits(s.x_next)
        gap = s.gap(logits).to(s.x)
        better = gap < s.best
        s = replace(
            s, x_adv=s.x_next, logits=logits, i=s.i + 1, best=torch.minimum(gap, s.best),
            kept=torch.where(per_row(better, s.x), s.content, s.kept),
            kept_place=torch.where(better, s.place, s.kept_place),
        )  # fmt: skip
        words = s.rng.words(6, "patch-rs", s.i, s.x.device)
        moves = (s.i % _PERIOD == 0) & (s.threat.place is None)
        content = torch.where(per_row(moves, s.x), s.kept, self._painted(s, words))
        place = torch.where(moves, self._moved(s, words), s.kept_place)
        return replace(s, content=content, place=place, x_next=_paste(s.x, content, place, s.threat))

    def _painted(self, s: PatchRSState, words: Tensor) -> Tensor:
        """The kept content with one square of one colour, each channel 0 or 1."""
        height, width = s.kept.shape[2:]
        halvings = (s.i[:, None] > self.queries * torch.tensor(_HALVINGS, device=s.i.device)).sum(1)
        side = (self.p_init * 0.5**halvings * height * width).sqrt().round().long().clamp(1, min(height, width))
        top, left = words[:, 0] * (height - side + 1) >> 32, words[:, 1] * (width - side + 1) >> 32
        row = torch.arange(height, device=s.x.device) - top[:, None]
        column = torch.arange(width, device=s.x.device) - left[:, None]
        in_row, in_column = (row >= 0) & (row < side[:, None]), (column >= 0) & (column < side[:, None])
        square = (in_row[:, :, None] & in_column[:, None, :])[:, None]
        bits = (words[:, 2:3] >> torch.arange(s.x.shape[1], device=s.x.device)) & 1
        colour = bits.to(s.x)[:, :, None, None]
        idle = ((s.kept == colour) | ~square).flatten(1).all(1)
        return torch.where(square, torch.where(per_row(idle, s.x), 1 - colour, colour), s.kept)

    def _moved(self, s: PatchRSState, words: Tensor) -> Tensor:
        """(B,) a place near the kept one, never the same where there is another."""
        rows, columns = s.threat.places(s.x)
        left = (1 - s.i / self.queries).clamp(min=0)
        row = _shifted(s.kept_place // columns, rows, left, words[:, 3])
        column = _shifted(s.kept_place % columns, columns, left, words[:, 4])
        moved = row * columns + column
        onward = (moved + 1) % (rows * columns)
        return torch.where(moved == s.kept_place, onward, moved)


def _shifted(at: Tensor, size: int, left: Tensor, word: Tensor) -> Tensor:
    """(B,) int64: a shift of at most max(1, size * left) to either side, uniform, held inside 0 .. size - 1."""
    reach = (size * left).round().long().clamp(min=1)
    return (at + (word * (2 * reach + 1) >> 32) - reach).clamp(0, size - 1)


def _paste(x: Tensor, content: Tensor, place: Tensor, threat: PatchThreat) -> Tensor:
    """x (B, C, H, W) with content (B, C, h, w) in the window at its place (B,)."""
    window = threat.window(place, x)
    return x.masked_scatter(window.expand_as(x), content)
