"""Total-variation denoising as a defence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser
from robustgen.purify.base import Chain, Sanitiser, State, register_purifier
from robustgen.rng import ExampleRng

__all__ = ["TotalVariation"]


@register_purifier("tv")
@dataclass(frozen=True, slots=True, kw_only=True)
class TotalVariation(Sanitiser):
    """Chambolle's iteration for min_u |u - x|^2 / 2 + weight TV(u), unrolled: its gradient is exact.

    Source: Rudin, Osher & Fatemi 1992; Chambolle 2004 (DOI 10.1023/B:JMIV.0000011325.36760.1e), eq. (9); as a defence
    Guo et al. 2018, arXiv:1711.00117. Differs: no pixels are dropped at random before.
    Under attack: falls to gradients that cross it (Athalye et al. 2018, arXiv:1802.00420).

    Args:
        weight: of the total variation, in units of pixels in [0, 1].
        steps: of the iteration.
    """

    weight: float = 0.1
    steps: int = 20

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise SpecError(f"tv: weight must be above 0, got {self.weight:g}.")
        if self.steps < 1:
            raise SpecError(f"tv: steps must be >= 1, got {self.steps}.")

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """The state is (x, p, q): the image and the dual field; the result is x - weight div(p, q)."""
        tau = 0.25

        def enter(state: State) -> State:
            (x,) = state
            return x, torch.zeros_like(x), torch.zeros_like(x)

        def advance(state: State) -> State:
            x, p, q = state
            down, right = _gradient(_divergence(p, q) - x / self.weight)
            norm = (down.square() + right.square() + 1e-12).sqrt()
            return x, (p + tau * down) / (1 + tau * norm), (q + tau * right) / (1 + tau * norm)

        def leave(state: State) -> State:
            x, p, q = state
            return (x - self.weight * _divergence(p, q),)

        return Chain(enter, [advance] * self.steps, leave)


def _gradient(u: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences, 0 at the far edge."""
    return torch.diff(u, dim=2, append=u[:, :, -1:]), torch.diff(u, dim=3, append=u[:, :, :, -1:])


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Minus the adjoint of `_gradient`."""
    down = torch.cat([p[:, :, :1], p[:, :, 1:-1] - p[:, :, :-2], -p[:, :, -2:-1]], 2)
    right = torch.cat([q[..., :1], q[..., 1:-1] - q[..., :-2], -q[..., -2:-1]], 3)
    return down + right
