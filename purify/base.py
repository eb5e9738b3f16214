"""What a purifier is: hyper-parameters, and a chain of steps from images to images. Everything else is shared.

A chain is cut where its gradient is checkpointed: each step is a pure function of its state, with all noise fixed, so
that it can be run again and gives the same. How a gradient crosses it is decided in `robustgen.purify.gradients`, what
noise it gets in `robustgen.defended`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from robustgen.generator.denoiser import Denoiser
from robustgen.registry import Registry
from robustgen.rng import ExampleRng

__all__ = [
    "PURIFIERS",
    "Chain",
    "Purifier",
    "Sanitiser",
    "State",
    "Step",
    "register_purifier",
    "run_chain",
    "single_step",
    "straight_through",
]

State = tuple[Tensor, ...]
Step = Callable[[State], State]

PURIFIERS: Registry[type[Purifier]] = Registry("purifier", "robustgen.purify")
register_purifier = PURIFIERS.register


@dataclass(frozen=True, slots=True)
class Chain:
    """One draw of a purifier.

    Attributes:
        enter: the image (B, C, H, W) in [0, 1], as a state of one tensor, to the state before the first step.
        steps: small steps, such as those of a solver; `adjoint` integrates these backwards.
        leave: the last state to one of one tensor, the purified image in about [0, 1].
    """

    enter: Step
    steps: Sequence[Step]
    leave: Step


@runtime_checkable
class Purifier(Protocol):
    """A frozen dataclass of hyper-parameters.

    An outsider adds one with one file: a dataclass under `@register_purifier("name")` in a module of this package or of
    an entry point `robustgen.purifiers`, whose docstring says in a line what it is, then its source and what is known
    of it under attack.
    """

    @property
    def stochastic(self) -> bool:
        """Whether two calls give two answers."""

    @property
    def evaluations(self) -> int:
        """How often it asks the denoiser for one image."""

    @property
    def generator(self) -> str | None:
        """The generator it asks, by name; None for none."""

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """The steps for one draw.

        Args:
            denoiser: that of `generator`; None where that is None.
            rng: one stream an image, the only source of chance; the same streams give the same steps.

        Raises:
            SpecError: hyper-parameters that this denoiser cannot serve.
        """


def run_chain(chain: Chain, x: Tensor) -> Tensor:
    """Images (B, C, H, W) through the whole chain, plainly."""
    state = chain.enter((x,))
    for step in chain.steps:
        state = step(state)
    (out,) = chain.leave(state)
    return out


class Sanitiser:
    """What purifiers without a generator have in common; deterministic unless they say otherwise."""

    __slots__ = ()

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def evaluations(self) -> int:
        return 0

    @property
    def generator(self) -> str | None:
        return None


def single_step(function: Callable[[Tensor], Tensor]) -> Chain:
    """The chain of one function of images in [0, 1]."""
    return Chain(lambda state: state, [lambda state: (function(state[0]),)], lambda state: state)


def straight_through(x: Tensor, out: Tensor) -> Tensor:
    """`out` with the gradient of x: for rounding, whose own gradient is 0 (Athalye et al. 2018, BPDA)."""
    return x + (out - x).detach()
