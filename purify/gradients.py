"""How a gradient crosses a purifier. Every mode is exact about what it is, and a record names it.

full        the exact gradient, checkpointed step by step: the memory of one step and of all states between steps
autograd    the same numbers by plain autograd, every step kept; for small chains and for comparison
surrogate   the exact image, with the gradient of the same purifier in fewer steps
adjoint     the exact image; states are integrated backwards from the last one, as adjoint solvers do
bpda        the exact image, with the gradient of the identity
none        the exact image and no gradient
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.purify.base import Chain, State, Step, run_chain

__all__ = ["EXACT", "GRADIENTS", "Gradient", "cross"]

Gradient = Literal["full", "autograd", "surrogate", "adjoint", "bpda", "none"]
GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)
EXACT = ("full", "autograd")


def cross(
    chain: Chain, x: Tensor, gradient: Gradient = "full", *, shorter: Callable[[], Chain] | None = None
) -> Tensor:
    """The purified image, with the gradient of that mode.

    Args:
        chain: one draw of a purifier.
        x: (B, C, H, W) in [0, 1].
        gradient: a mode.
        shorter: makes the chain whose gradient `surrogate` takes.

    Raises:
        SpecError: `surrogate` without a shorter chain.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        with torch.no_grad():
            return run_chain(chain, x)
    if gradient == "full":
        return _checkpointed(chain, x)
    if gradient == "autograd":
        return run_chain(chain, x)
    if gradient == "adjoint":
        (state,) = chain.leave(_Adjoint.apply(chain.steps, *chain.enter((x,))))
        return state
    with torch.no_grad():
        exact = run_chain(chain, x)
    if gradient == "none":
        return exact
    if gradient == "bpda":
        return x + (exact - x).detach()
    if shorter is None:
        raise SpecError("gradient 'surrogate' needs a purifier with steps; type --gradient full or bpda.")
    quick = _checkpointed(shorter(), x)
    return quick + (exact - quick).detach()


def _checkpointed(chain: Chain, x: Tensor) -> Tensor:
    """Each step is run without a graph, and again with one when its gradient is asked for."""
    (out,) = chain.leave(_Checkpointed.apply(chain.steps, *chain.enter((x,))))
    return out


def _cross_step(step: Step, state: State, gradients: State) -> tuple[State, State]:
    """The state after a step, and the vector-Jacobian product of the step at the state before."""
    with torch.enable_grad():
        leaves = tuple(part.detach().requires_grad_() for part in state)
        after = step(leaves)
        before = torch.autograd.grad(after, leaves, gradients, allow_unused=True, materialize_grads=True)
    return tuple(part.detach() for part in after), before


class _Checkpointed(torch.autograd.Function):
    """The states between steps are kept, nothing else; exact, since steps give the same when they are run again."""

    @staticmethod
    def forward(ctx: Any, steps: Sequence[Step], *state: Tensor) -> State:
        states = []
        for step in steps:
            states.append(state)
            state = step(state)
        ctx.steps, ctx.states = steps, states
        return state

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, *tuple[Tensor, ...]]:
        for step, state in zip(reversed(ctx.steps), reversed(ctx.states), strict=True):
            _, gradients = _cross_step(step, state, gradients)
        return None, *gradients


class _Adjoint(torch.autograd.Function):
    """Steps u' = u + g(u) integrated backwards: u is taken to be u' - g(u'), and the gradient to cross g there.

    Source: Li et al. 2020, arXiv:2001.01328, with Euler's method in both directions and the same noise. The states that
    it goes back through are not those of the way forward, so its gradient is that of another path.
    """

    @staticmethod
    def forward(ctx: Any, steps: Sequence[Step], *state: Tensor) -> State:
        for step in steps:
            state = step(state)
        ctx.steps, ctx.state = steps, state
        return state

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, *tuple[Tensor, ...]]:
        state = ctx.state
        for step in reversed(ctx.steps):
            after, gradients = _cross_step(step, state, gradients)
            state = tuple(2 * here - there for here, there in zip(state, after, strict=True))
        return None, *gradients
