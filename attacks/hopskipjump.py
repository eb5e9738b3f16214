"""HopSkipJump: the normal of the boundary from labels around one point, a jump along it, and a bisection back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.attacks.decision import OWN, TINY, DecisionBased, DecisionState, Phase
from robustgen.attacks.phases import where
from robustgen.errors import SpecError
from robustgen.registry import register_attack
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel, norm_of, per_row

__all__ = ["HopSkipJump", "HopSkipJumpState"]

_PROBE, _JUMP = OWN, OWN + 1
_FINEST = 2.0**-20  # of a bisection; float32 tells no more apart


@dataclass(kw_only=True)
class HopSkipJumpState(DecisionState):
    """The iteration under way.

    Attributes:
        turn: (B,) int64, t, from 1.
        probed: (B,) int64, answers so far of the B_t.
        wanted: (B,) int64, B_t.
        spread: (B,), delta_t.
        before: (B,), distance of the point from which the last bisection started.
        total, signed: (B, C, H, W), sums of u_b and of phi_b u_b; then `signed` is the direction of the jump.
        agreed: (B,), sum of the phi_b.
        length: (B,), xi_t, of the jump.
    """

    turn: Tensor
    probed: Tensor
    wanted: Tensor
    spread: Tensor
    before: Tensor
    total: Tensor
    signed: Tensor
    agreed: Tensor
    length: Tensor


@register_attack("hopskipjump")
@dataclass(frozen=True, slots=True, kw_only=True)
class HopSkipJump(DecisionBased):
    """Labels only: estimates the direction of the boundary, jumps along it and bisects back to the boundary.

    Source: Chen et al. 2020, arXiv:1904.02144, Algorithms 1 and 2, in L2 and Linf: B_0 sqrt(t) probes at delta_t =
    dist / d, which is sqrt(d) theta dist with theta = d^-1.5 (Linf: d theta dist with d^-2); the estimate with the
    mean of the answers as baseline; xi_t = dist / sqrt(t), halved until it succeeds.
    Differs: the first delta is a tenth of the range; no bisection goes below 2^-20 of the way; the last estimate takes
    no more probes than leave queries for its jump; starts are noise of several grains.
    """

    probes: int = 100  # B_0
    nearest_in: ClassVar[tuple[Norm, ...]] = ("l2", "linf")
    name: ClassVar[str] = "hopskipjump"

    def __post_init__(self) -> None:
        DecisionBased.__post_init__(self)
        if self.probes < 2:
            raise SpecError(f"hopskipjump: probes must be at least 2, got {self.probes}.")

    def precision(self, x: Tensor, norm: Norm) -> float:
        """theta: a coarser one leaves the probes, which are finer in Linf, all on one side of the boundary."""
        return float(max(x[0].numel() ** (-2.0 if norm == "linf" else -1.5), _FINEST))

    def start(self, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **common: Any) -> HopSkipJumpState:
        zero, none = x.new_zeros(len(x)), torch.zeros_like(y)
        return HopSkipJumpState.start(
            x, y, threat, rng, **common, turn=none + 1, probed=none, wanted=none, spread=zero, before=zero,
            total=torch.zeros_like(x), signed=torch.zeros_like(x), agreed=zero, length=zero,
        )  # fmt: skip

    def learn(self) -> Sequence[Phase]:
        return self._learn_probe, _learn_jump

    def propose(self) -> Sequence[Phase]:
        return _propose_probe, _propose_jump

    def arrive(self, s: HopSkipJumpState) -> HopSkipJumpState:
        """Begin the estimate of iteration t around x_t."""
        wanted = (self.probes * s.turn.double().sqrt()).long()
        left = self.queries - s.i - math.ceil(-math.log2(self.precision(s.x, s.threat.norm))) - 2
        return replace(
            s, phase=torch.full_like(s.phase, _PROBE), probed=torch.zeros_like(s.probed),
            agreed=torch.zeros_like(s.agreed), wanted=torch.minimum(wanted, left.clamp(min=2)),
            total=torch.zeros_like(s.x), signed=torch.zeros_like(s.x),
            spread=torch.where(s.turn == 1, 0.1, s.before / s.x[0].numel()),
        )  # fmt: skip

    def _learn_probe(self, s: HopSkipJumpState) -> HopSkipJumpState:
        """phi_b u_b, with u_b as it was after the clipping to [0, 1]."""
        u = (s.x_next - s.here) / per_row(s.spread.clamp(min=TINY), s.x)
        phi = torch.where(s.wrong, 1.0, -1.0).to(s.x)
        s = replace(
            s, total=s.total + u, signed=s.signed + per_row(phi, s.x) * u, agreed=s.agreed + phi, probed=s.probed + 1
        )
        return where(s, s.probed >= s.wanted, _aim)


def _propose_probe(s: HopSkipJumpState) -> HopSkipJumpState:
    """x_t + delta_t u_b, u_b uniform on the unit sphere (Linf: from the cube, of unit length)."""
    shape = s.x.shape[1:]
    if s.threat.norm == "linf":
        u = 2 * s.rng.uniform(shape, "probe", s.i, s.x.device).to(s.x) - 1
    else:
        u = s.rng.normal(shape, "probe", s.i, s.x.device).to(s.x)
    u = u / per_row(norm_of(u, "l2").clamp(min=TINY), s.x)
    return replace(s, x_next=(s.here + per_row(s.spread, s.x) * u).clamp(0, 1))


def _aim(s: HopSkipJumpState) -> HopSkipJumpState:
    """The estimate with a baseline: phi_b less their mean; where all agree, the mean of the u_b, or its opposite."""
    mean = s.agreed / s.probed
    v = torch.where(per_row(mean.abs() == 1, s.x), s.signed, s.signed - per_row(mean, s.x) * s.total)
    v = v.sign() if s.threat.norm == "linf" else v / per_row(norm_of(v, "l2").clamp(min=TINY), s.x)
    length = norm_of(s.here - s.x, s.threat.norm) / s.turn.to(s.x).sqrt()
    return replace(s, signed=v, length=length, phase=torch.full_like(s.phase, _JUMP))


def _propose_jump(s: HopSkipJumpState) -> HopSkipJumpState:
    return replace(s, x_next=(s.here + per_row(s.length, s.x) * s.signed).clamp(0, 1))


def _learn_jump(s: HopSkipJumpState) -> HopSkipJumpState:
    """Bisect from where it landed, or halve xi_t."""
    return replace(
        s,
        far=torch.where(per_row(s.wrong, s.x), s.x_next, s.far),
        low=torch.zeros_like(s.low),
        high=torch.ones_like(s.high),
        before=torch.where(s.wrong, norm_of(s.x_next - s.x, s.threat.norm), s.before),
        turn=s.turn + s.wrong.long(),
        length=torch.where(s.wrong, s.length, s.length / 2),
        phase=torch.where(s.wrong, 1, s.phase),
    )
