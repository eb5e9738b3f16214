"""Several rounds of another purifier, each with noise of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser
from robustgen.purify.base import Chain, Purifier, State, Step, register_purifier
from robustgen.purify.one_shot import OneShot
from robustgen.rng import ExampleRng, child_stream

__all__ = ["Repeat"]


@register_purifier("repeat")
@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """Purify several times in a row: repeat:rounds=4,of=diffpure:t=0.03,steps=5 (`of` comes last).

    Source: the gradual noise of Lee & Kim 2023, arXiv:2303.09051, is of this kind, with levels that rise.
    Under attack: nothing but a longer chain; exact gradients cross it.

    Args:
        rounds: how often.
        of: which purifier, with its own settings.
    """

    rounds: int = 2
    of: Purifier = field(default_factory=OneShot)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise SpecError(f"repeat: rounds must be >= 1, got {self.rounds}.")

    @property
    def stochastic(self) -> bool:
        return self.of.stochastic

    @property
    def evaluations(self) -> int:
        return self.rounds * self.of.evaluations

    @property
    def generator(self) -> str | None:
        return self.of.generator

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """The rounds' chains end to end."""
        chains = [self.of.chain(denoiser, child_stream(rng, f"round {k}")) for k in range(self.rounds)]
        steps = list(chains[0].steps)
        for before, after in pairwise(chains):
            steps += [_joint(before, after), *after.steps]
        return Chain(chains[0].enter, steps, chains[-1].leave)


def _joint(before: Chain, after: Chain) -> Step:
    def advance(state: State) -> State:
        return after.enter(before.leave(state))

    return advance
