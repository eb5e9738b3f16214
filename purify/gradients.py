"""How a gradient crosses a purifier. Every mode is exact about what it is, and a record names it.

full        the exact gradient, checkpointed step by step: the memory of a step and of all states between steps, and
            the graphs of the last steps as far as they fit into 2 GiB, so that those are not run twice
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
_ROOM = 2**31  # bytes of graphs that `full` keeps from the way forward


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
    """Steps whose graph is not kept are run without one, and again with one when their gradient is asked for."""
    (out,) = chain.leave(_Checkpointed.apply(chain.steps, *chain.enter((x,))))
    return out


class _Checkpointed(torch.autograd.Function):
    """The states between steps are kept, and the last graphs that fit; exact, since a step run again gives the same."""

    @staticmethod
    def forward(ctx: Any, steps: Sequence[Step], *state: Tensor) -> State:
        ctx.steps, ctx.states, ctx.graphs = steps, [], {}
        largest, used = 0, 0  # bytes of a graph; the first step tells
        for k, step in enumerate(steps):
            ctx.states.append(state)
            if k > 0 and used + (len(steps) - k) * largest > _ROOM:
                state = step(state)
                continue
            leaves, after, size = _with_graph(step, state)
            largest = max(largest, size)
            if used + size + (len(steps) - k - 1) * largest <= _ROOM:
                ctx.graphs[k] = (leaves, after)
                used += size
            state = tuple(part.detach() for part in after)
        return state

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, *tuple[Tensor, ...]]:
        for k in reversed(range(len(ctx.steps))):
            leaves, after = ctx.graphs.pop(k, None) or _with_graph(ctx.steps[k], ctx.states[k])[:2]
            gradients = _product(leaves, after, gradients)
        return None, *gradients


def _with_graph(step: Step, state: State) -> tuple[State, State, int]:
    """The state before a step as leaves, the state after it with its graph, and the bytes that the graph holds."""
    held: dict[int, int] = {}

    def note(part: Tensor) -> Tensor:
        held[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        return part

    leaves = tuple(part.detach().requires_grad_() for part in state)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda part: part):
        after = step(leaves)
    return leaves, after, sum(held.values())


def _product(leaves: State, after: State, gradients: State) -> State:
    """The vector-Jacobian product of a step."""
    return torch.autograd.grad(after, leaves, gradients, allow_unused=True, materialize_grads=True)


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
            leaves, after, _ = _with_graph(step, state)
            gradients = _product(leaves, after, gradients)
            state = tuple(2 * here - there.detach() for here, there in zip(state, after, strict=True))
        return None, *gradients
