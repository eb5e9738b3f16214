"""Square Attack: random search with square-shaped updates. Black box: it sees logits, never gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.base import QueryModel, Sees, State
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel, per_row

__all__ = ["Square", "SquareState"]

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # iterations after which the area fraction p halves
_ORDER = {"l2": 2, "l1": 1}
_TINY = 1e-12
_DRAWN = 32  # rounds whose random numbers are drawn at once


@dataclass(kw_only=True)
class SquareState(State):
    """What was accepted: `x_best` (B, C, H, W), its `logits_best` (B, K) and `margin_best` (B,).

    Before the first query the logits are one column of zeros and the margin is +inf. `words` (B, _DRAWN, 5 + C) int64
    are the random numbers of the rounds from `drawn` (B,) on: a round needs few, and to draw them one by one would
    cost as much as the rest of a proposal.
    """

    x_best: Tensor
    margin_best: Tensor
    logits_best: Tensor
    words: Tensor
    drawn: Tensor


@register_attack("square")
@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """Propose a random square inside the threat model; keep it if the margin falls.

    Source: Andriushchenko et al. 2020, arXiv:1912.00049, Algorithms 1 to 3; the schedule of p is that of section 3.2
    for 10,000 iterations, not rescaled to `steps`, as in AutoAttack. For L1, Croce & Hein 2021,
    arXiv:2103.01208, section 5.
    Differs: each example draws its own squares (the reference shares them within a batch, so that its result
    depends on the batch size), and windows reach the last row and column, as in the paper.
    """

    steps: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    takes_goal: ClassVar[bool] = True
    sees: ClassVar[Sees] = "scores"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise SpecError(f"square: steps (queries) and restarts must be >= 1, got {self.steps} and {self.restarts}.")
        if not 0 < self.p_init <= 1:
            raise SpecError(f"square: p_init is a fraction of the image in (0, 1], got {self.p_init}.")

    @property
    def rounds(self) -> int:
        return self.steps + 1  # the initial point is a query as well

    def limited(self, queries: int) -> Square:
        """One restart of so many queries, the start among them."""
        if queries < 2:
            raise SpecError(f"square needs 2 queries at least, its start and one proposal, got {queries}.")
        return replace(self, steps=queries - 1, restarts=1)

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> SquareState:  # fmt: skip
        start = _stripes(x, threat, rng) if threat.norm == "linf" else _tiles(x, threat, rng)
        return SquareState.start(
            x, y, threat, rng, goal=goal,
            x_best=start, margin_best=x.new_full((len(x),), torch.inf), logits_best=x.new_zeros(len(x), 1),
            words=y.new_zeros(len(x), _DRAWN, 5 + x.shape[1]), drawn=torch.full_like(y, -_DRAWN),
        )  # fmt: skip

    def step(self, oracle: QueryModel, s: State) -> SquareState:
        """Query one proposal for every row and keep those that lower the margin."""
        assert isinstance(s, SquareState)
        s = _draw(s)
        proposal = torch.where(per_row(s.i == 0, s.x), s.x_best, self._propose(s))
        # Late Linf squares often fall on pixels that lie at that end of the ball already, and change nothing.
        idle = (s.i > 0) & (proposal == s.x_best).flatten(1).all(1)
        logits = oracle.logits(proposal, known=(idle, s.logits_best))
        f = s.gap(logits)
        better = f < s.margin_best
        return replace(
            s,
            x_adv=proposal,
            logits=logits,
            x_best=torch.where(per_row(better, s.x), proposal, s.x_best),
            margin_best=torch.where(better, f, s.margin_best),
            logits_best=torch.where(better[:, None], logits, s.logits_best),
            i=s.i + 1,
        )

    def _propose(self, s: SquareState) -> Tensor:
        iteration = (s.i - 1).clamp(min=0)
        halvings = (iteration[:, None] > torch.tensor(_HALVINGS, device=s.x.device)).sum(1)
        sides = _sides(self.p_init, *s.x.shape[2:], s.threat.norm)
        side = torch.tensor(sides, device=s.x.device)[halvings]
        words = s.words[torch.arange(len(s.i), device=s.i.device), s.i - s.drawn]
        if s.threat.norm == "linf":
            return _square_linf(s, side, words)
        eta = _eta_table(sides, _ORDER[s.threat.norm]).to(s.x)[halvings, words[:, 4] & 1]
        return (_square_l2 if s.threat.norm == "l2" else _square_l1)(s, side, words, eta)


def _draw(s: SquareState) -> SquareState:
    """The state with random numbers for the coming round in every row."""
    if (s.i - s.drawn < _DRAWN).all():
        return s
    rows = torch.arange(len(s.i), device=s.i.device).repeat_interleave(_DRAWN)
    rounds = (s.i[:, None] + torch.arange(_DRAWN, device=s.i.device)).flatten()
    words = s.rng.take(rows).words(s.words.shape[2], "square", rounds, s.x.device)
    return replace(s, words=words.reshape(s.words.shape), drawn=s.i)


@lru_cache(maxsize=64)
def _sides(p_init: float, height: int, width: int, norm: Norm) -> tuple[int, ...]:
    """The side of the square after 0, 1, ... halvings of the area fraction."""
    areas = p_init * 0.5 ** torch.arange(len(_HALVINGS) + 1) * height * width
    sides = areas.sqrt().round().long()
    if norm != "linf":
        sides = sides.clamp(min=3) // 2 * 2 + 1
    return tuple(sides.clamp(1, min(height, width)).tolist())


def _stripes(x: Tensor, threat: ThreatModel, rng: ExampleRng) -> Tensor:
    """Start for Linf (section 3.3): vertical stripes one pixel wide, -eps or +eps in each channel."""
    signs = rng.signs((x.shape[1], 1, x.shape[3]), "stripes", device=x.device)
    return (x + threat.eps * signs).clamp(0, 1)


def _square_linf(s: SquareState, side: Tensor, words: Tensor) -> Tensor:
    """Algorithm 2: one square of side (B,), each channel moved by 2 eps up or down, then projected."""
    window = _window(s.x, side, *_offsets(s.x, side, words[:, 0], words[:, 1]))
    signs = _signs(words, s.x)
    return s.threat.project(s.x, s.x_best + 2 * s.threat.eps * signs * window)


def _window(x: Tensor, side: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """(B, 1, H, W): 1 where both offsets (B, H) and (B, W) lie in 0 .. side - 1."""
    inside_r, inside_c = (r >= 0) & (r < side[:, None]), (c >= 0) & (c < side[:, None])
    return (inside_r[:, :, None] & inside_c[:, None, :]).unsqueeze(1).to(x.dtype)


def _offsets(x: Tensor, side: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H) and (B, W): coordinates relative to the corner of a window, uniform over all places that fit."""
    height, width = x.shape[2:]
    top = row * (height - side + 1) >> 32
    left = column * (width - side + 1) >> 32
    return (
        torch.arange(height, device=x.device)[None] - top[:, None],
        torch.arange(width, device=x.device)[None] - left[:, None],
    )


def _signs(words: Tensor, x: Tensor) -> Tensor:
    """(B, C, 1, 1) of -1 and +1 from the words after the first five."""
    return ((words[:, 5:] & 1) * 2 - 1).to(x.dtype)[:, :, None, None]


def _square_l2(s: SquareState, side: Tensor, words: Tensor, eta: Tensor) -> Tensor:
    """Algorithm 3: the norm in window 2, and what the ball has left, move to window 1, in the shape of eta."""
    nu = s.x_best - s.x
    unused = (s.threat.eps**2 - nu.square().sum((1, 2, 3), keepdim=True)).clamp(min=0)
    shape, windows = _reshaped(s, nu, side, words, eta)
    budget = (_norm(nu * windows, 2).square() + unused / s.x.shape[1]).sqrt()
    nu = nu * (1 - windows) + shape * budget
    length = nu.square().sum((1, 2, 3), keepdim=True).sqrt()
    return s.threat.project(s.x, s.x + nu * s.threat.eps / (length + _TINY))


def _square_l1(s: SquareState, side: Tensor, words: Tensor, eta: Tensor) -> Tensor:
    """Algorithm 3 with L1 norms (Croce & Hein 2021): each of C channels gets C times its share, then projected."""
    nu = s.x_best - s.x
    unused = (s.threat.eps - nu.abs().sum((1, 2, 3), keepdim=True)).clamp(min=0)
    shape, windows = _reshaped(s, nu, side, words, eta)
    budget = s.x.shape[1] * _norm(nu * windows, 1) + unused
    return s.threat.project(s.x, s.x + nu * (1 - windows) + shape * budget)


def _reshaped(s: SquareState, nu: Tensor, side: Tensor, words: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    """nu in window 1 with eta added, of unit norm in each channel (B, C, H, W); 1 in either window (B, 1, H, W)."""
    p = _ORDER[s.threat.norm]
    r, c = _offsets(s.x, side, words[:, 0], words[:, 1])
    w1 = _window(s.x, side, r, c)
    w2 = _window(s.x, side, *_offsets(s.x, side, words[:, 2], words[:, 3]))
    inside, last = nu * w1, eta.shape[1] - 1
    rows = torch.arange(len(r), device=r.device)[:, None, None]
    bumps = eta[rows, r.clamp(0, last)[:, :, None], c.clamp(0, last)[:, None]].unsqueeze(1) * w1
    shape = bumps * _signs(words, s.x) + inside / (_norm(inside, p) + _TINY)
    return shape / (_norm(shape, p) + _TINY), torch.maximum(w1, w2)


def _norm(z: Tensor, p: int) -> Tensor:
    """(B, C, 1, 1): Lp norm of each channel."""
    if p == 1:
        return z.abs().sum((2, 3), keepdim=True)
    return z.square().sum((2, 3), keepdim=True).sqrt()


@lru_cache(maxsize=64)
def _eta_table(sides: tuple[int, ...], p: int) -> Tensor:
    """(len(sides), 2, L, L) for the longest side L: eta of each side in the upper left corner, and its transpose."""
    longest = max(sides)
    table = torch.stack([torch.nn.functional.pad(_eta(k, p), (0, longest - k, 0, longest - k)) for k in sides])
    return torch.stack([table, table.transpose(1, 2)], 1)


@lru_cache(maxsize=64)
def _eta(side: int, p: int) -> Tensor:
    """(side, side): a positive and a negative bump, one above the other, of unit Lp norm (section 3.4, eq. (2))."""
    upper = side // 2
    return _unit(torch.cat([_bump(upper, side, p), -_bump(side - upper, side, p)]), p)


def _bump(height: int, width: int, p: int) -> Tensor:
    """(height, width): sum of 1 / (k + 1)^q over k from the Chebyshev distance to the centre up to the rim.

    q is 2 for L2 and 4 for L1.
    """
    rim = max(height // 2, width // 2)
    tails = torch.tensor([1.0 / (k + 1) ** (4 // p) for k in range(rim + 1)]).flip(0).cumsum(0).flip(0)
    r = (torch.arange(height) - height // 2).abs()[:, None]
    c = (torch.arange(width) - width // 2).abs()[None]
    return _unit(tails[torch.maximum(r, c)], p)


def _unit(pattern: Tensor, p: int) -> Tensor:
    """A pattern (h, w) scaled to Lp norm 1; empty patterns stay empty."""
    return pattern / torch.linalg.vector_norm(pattern, ord=p).clamp(min=_TINY) if len(pattern) else pattern


def _tiles(x: Tensor, threat: ThreatModel, rng: ExampleRng) -> Tensor:
    """Start for L2 and L1 (section 3.4): a grid of eta tiles, about five along the shorter edge, random signs.

    L2 scales it to length eps; L1 projects tiles of norm 1 as they are.
    """
    batch, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    signs = rng.signs((channels, rows, columns), "tiles", device=x.device)
    flips = rng.words(rows * columns, "tile-turns", device=x.device).reshape(batch, 1, rows, columns) & 1
    eta = _eta(side, _ORDER[threat.norm]).to(x)
    tile = torch.where(flips[..., None, None] == 1, eta.T, eta) * signs[..., None, None]
    grid = tile.transpose(3, 4).reshape(batch, channels, rows * side, columns * side)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    delta = torch.zeros_like(x)
    delta[:, :, top : top + rows * side, left : left + columns * side] = grid
    if threat.norm == "l1":
        return threat.project(x, x + delta)
    length = delta.square().sum((1, 2, 3), keepdim=True).sqrt()
    return threat.project(x, x + delta * threat.eps / (length + _TINY))
