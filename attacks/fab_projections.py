"""The nearest point of a hyperplane inside the box [0, 1]: the problem that FAB solves twice an iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from robustgen.threat import Norm

__all__ = ["step_to_hyperplane"]

_FLAT = 1e-8  # |w_j| up to this is rounding: in L2 and L1 coordinate j stays where it is
_FLAT_SHARE = 1e-6  # but never more than this share of the largest |w_j|, so that the scale of w does not matter


def step_to_hyperplane(x: Tensor, w: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """The shortest d with gap + <w, d> = 0 and x + d in [0, 1]; where there is none, the step to the nearest corner.

    A coordinate can lower |gap| by at most |w_j| room_j, where room_j is the way to the wall of the box in the useful
    direction. The KKT conditions leave one number a row to be found:

        Linf: |d_j| = min(lam, room_j)            L2: |d_j| = min(lam |w_j|, room_j)
        L1:   the coordinates with the largest |w_j| go to the wall, the last of them part of the way.

    Args:
        x: (P, B, D) in [0, 1], P points for each of B hyperplanes.
        w: (B, D) gradient of the linear function; may be zero, and then so is d.
        gap: (P, B) value of the function at x.
        norm: in which d is shortest.

    Returns:
        (P, B, D) d, of the dtype of x.

    Source: Croce & Hein 2020, arXiv:1907.02044, the projection problem of FAB and its three solutions. The paper sorts
    the D breakpoints for each norm; for Linf and L2 Newton's method finds the same lam in a few passes.
    Differs: in L2 and L1 coordinates with a negligible weight stay, as in the reference implementation. It matters
    where the plane misses the box: they would all go to the wall for nothing.
    """
    if norm != "linf":
        flat = (_FLAT_SHARE * w.abs().amax(-1, keepdim=True)).clamp(max=_FLAT)
        w = w * (w.abs() > flat)
    slope = torch.where(gap >= 0, -1, 1).to(w.dtype)[..., None] * w  # |gap| falls along its signs
    room = torch.gt(slope, 0, out=torch.empty_like(x)).sub_(x).abs_()  # 1 - x or x
    size = w.abs()
    reach = size * room
    if norm == "l1":
        length = room * _knapsack(reach, size, gap.abs())
    elif norm == "l2":
        lam = _newton(room / size, size * size, reach, gap.abs())
        length = torch.minimum(lam[..., None] * size, room)
    else:
        lam = _newton(room, size, reach, gap.abs())
        length = torch.minimum(lam[..., None], room)
    return slope.sign() * length


def _newton(kink: Tensor, rate: Tensor, reach: Tensor, need: Tensor) -> Tensor:
    """(P, B): the least lam >= 0 with sum_j min(lam rate_j, reach_j) = need; the largest number where none is enough.

    The sum is concave and piecewise linear in lam with a kink at each `kink` = reach / rate, so Newton's method from 0
    never passes the solution, and it ends as soon as it stays in one piece: after four to eight passes as a rule, after
    D at the latest. A row that has arrived stays where it is, whatever the others do.

    Args:
        kink, reach: (P, B, D) >= 0; where `reach` is 0 a kink may be anything, NaN and infinity too.
        rate: (B, D) >= 0.
        need: (P, B) >= 0.
    """
    limits = torch.finfo(reach.dtype)
    rate = rate.expand_as(reach)
    mask = torch.empty_like(reach)  # comparisons write 0 and 1 into it: many times faster than bool and `where`
    lam = torch.zeros_like(need)
    for _ in range(reach.shape[-1] + 1):
        bound = lam[..., None]
        left = need - torch.linalg.vecdot(torch.le(kink, bound, out=mask), reach)
        steepness = torch.linalg.vecdot(torch.gt(kink, bound, out=mask), rate)
        reached = (left / steepness.clamp(min=limits.tiny)).clamp(max=limits.max)
        rises = reached > lam
        if not rises.any():
            break
        lam = torch.where(rises, reached, lam)
    return lam


def _knapsack(reach: Tensor, size: Tensor, need: Tensor) -> Tensor:
    """(P, B, D) in [0, 1]: shares of `reach` (P, B, D) that add up to `need` (P, B), largest `size` (B, D) first."""
    order = size.argsort(dim=-1, descending=True, stable=True).expand_as(reach)
    sorted_reach = reach.gather(-1, order)
    before = sorted_reach.cumsum(-1) - sorted_reach
    share = (need[..., None] - before) / sorted_reach.clamp(min=torch.finfo(reach.dtype).tiny)
    return torch.empty_like(reach).scatter_(-1, order, share.clamp(0, 1))
