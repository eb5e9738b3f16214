"""APGD in the L1 norm: sparse steps, first in balls larger than the threat model. `apgd.py` runs it for l1 threats.

Source: Croce & Hein 2021, "Mind the box", arXiv:2103.01208, section 3: Algorithm 1, and its multi-eps form with radii
of 3 eps, 2 eps and eps for 30, 30 and 40 % of the iterations.
Differs: the engine drops a row when it is broken. As in the reference implementation there is no momentum, a step moves
no fewer than two coordinates once two have moved, and each phase begins by querying the best point of the one before,
projected into the smaller ball: `steps` + 3 queries in all. A coordinate that the projection puts back to its clean
value does not count as moved; the reference counts it where float32 rounding left a residue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustgen.attacks.ascent import Ascent, keep_best
from robustgen.attacks.base import Query
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel, per_row

__all__ = ["SparseAscent", "climb", "phases", "start"]

_RADII = (3.0, 2.0, 1.0)  # of the phases, in multiples of eps
_SHARE = 0.3  # of the iterations for the first phase and for the second
_WINDOW = 0.04  # share of a phase's iterations between two adaptations
_SPREAD = 1.5  # a step moves so many times fewer coordinates than x_max has moved so far
_FELL = 0.95  # below this ratio to its last value the count of moved coordinates has fallen
_DECAY, _FLOOR = 1.5, 10.0  # eta is divided by the first, and never below the radius over the second
_TINY = 1e-10


@dataclass(kw_only=True)
class SparseAscent(Ascent):
    """Algorithm 1 in mid-flight, row by row; all (B,)."""

    phase: Tensor  # int64, index into the radii
    k: Tensor  # int64, queries made in this phase
    moved: Tensor  # int64, ||x_max - x||_0 at the last adaptation
    density: Tensor  # float32, share of the coordinates that a step moves


def phases(steps: int) -> tuple[int, int, int]:
    """Iterations in each phase; they add up to `steps`."""
    first = math.ceil(_SHARE * steps)
    second = min(first, steps - first)
    return first, second, steps - first - second


def start(
    x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, target: Tensor, goal: Tensor | None = None
) -> SparseAscent:
    """Gaussian noise around x (B, C, H, W), projected into the largest ball."""
    idle, zero = torch.zeros_like(y), torch.zeros_like(x)
    s = SparseAscent.start(
        x, y, threat, rng,
        x_next=threat.scaled(_RADII[0]).random_start(x, rng, surface=True), x_max=x, grad_max=zero,
        f_max=x.new_full((len(x),), -torch.inf), eta=idle.float(), target=target, goal=goal,
        gap_seen=idle.float(), gap_min=x.new_full((len(x),), torch.inf),
        phase=idle, k=idle, moved=idle, density=idle.float(),
    )  # fmt: skip
    return _open_phase(s, torch.ones_like(y, dtype=torch.bool))


def climb(s: SparseAscent, query: Query, steps: int) -> SparseAscent:
    """Take in what x^(k) answered, then propose x^(k+1), or the start of the next phase where this one is over.

    The last query of a phase and the first of the next are one round, so that `i` counts iterations as in Linf and L2.
    """
    s = keep_best(s, query)
    length = torch.tensor(phases(steps), device=s.y.device)[s.phase]
    window = torch.tensor([max(int(_WINDOW * n), 1) for n in phases(steps)], device=s.y.device)[s.phase]
    x_k, grad = _adapt(s, query, window)
    closes = (s.k >= length) & (s.phase < len(_RADII) - 1)
    ascent = x_k + per_row(s.eta, s.x) * _sparse_sign(grad, s.density)
    s = replace(s, x_adv=s.x_next, logits=query.logits, i=s.i + ~closes, phase=s.phase + closes, k=s.k + 1)
    s.x_next = _project(s, torch.where(per_row(closes, s.x), s.x_max, ascent))
    return _open_phase(s, closes)


def _adapt(s: SparseAscent, query: Query, window: Tensor) -> tuple[Tensor, Tensor]:
    """Choose density and eta anew where a window is over; go back to the best point where fewer coordinates moved."""
    due = (s.k > 0) & (s.k % window == 0)
    moved, radius = _moved(s.x_max, s.x), _radius(s)
    fell = due & (moved / s.moved < _FELL)
    eta = torch.where(fell, radius, s.eta / _DECAY).clamp(radius / _FLOOR, radius)
    s.eta = torch.where(due, eta, s.eta)
    s.density = torch.where(due, _density(moved, s.x), s.density)
    s.moved = torch.where(due, moved, s.moved)
    back = per_row(fell, s.x)
    return torch.where(back, s.x_max, s.x_next), torch.where(back, s.grad_max, query.grad)


def _open_phase(s: SparseAscent, opens: Tensor) -> SparseAscent:
    """Forget loss and step size where (B,) a phase opens at x_next; how sparse it is sets how sparse steps are."""
    moved = _moved(s.x_next, s.x)
    return replace(
        s,
        f_max=torch.where(opens, -torch.inf, s.f_max),
        eta=torch.where(opens, _radius(s), s.eta),
        k=torch.where(opens, 0, s.k),
        moved=torch.where(opens, moved, s.moved),
        density=torch.where(opens, _density(moved, s.x), s.density),
    )


def _sparse_sign(grad: Tensor, density: Tensor) -> Tensor:
    """The signs of the largest coordinates of each row of grad (B, C, H, W), a share `density` (B,), of L1 norm 1."""
    size = grad.abs()
    n = grad[0].numel()
    rank = n - ((1 - density) * n).long().clamp(0, n - 1)  # 1 for the largest coordinate alone
    largest = size.flatten(1).topk(int(rank.max()), dim=1).values
    sign = grad.sign() * (size >= per_row(largest.gather(1, rank[:, None] - 1), grad))
    return sign / (sign.abs().sum((1, 2, 3), keepdim=True) + _TINY)


def _project(s: SparseAscent, z: Tensor) -> Tensor:
    """z (B, C, H, W) into each row's ball of the moment, and into [0, 1]."""
    projected = torch.empty_like(z)
    for phase, factor in enumerate(_RADII):
        rows = (s.phase == phase).nonzero().flatten()
        if len(rows):
            projected[rows] = s.threat.scaled(factor).project(s.x[rows], z[rows])
    return projected


def _radius(s: SparseAscent) -> Tensor:
    """(B,) float32: radius of each row's ball of the moment."""
    return torch.tensor([factor * s.threat.eps for factor in _RADII], device=s.y.device)[s.phase]


def _moved(z: Tensor, x: Tensor) -> Tensor:
    """(B,) int64: coordinates in which z and x differ."""
    return (z != x).flatten(1).sum(1)


def _density(moved: Tensor, x: Tensor) -> Tensor:
    return (moved / x[0].numel() / _SPREAD).float()
