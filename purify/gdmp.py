"""GDMP: DDPM from a small t, several times, each step pulled toward the diffused input."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser, to_generator_range
from robustgen.generator.views import linear_schedule
from robustgen.purify.base import Chain, State, Step, register_purifier
from robustgen.purify.diffpure import leave
from robustgen.purify.levels import Level
from robustgen.rng import ExampleRng, child_stream

__all__ = ["Gdmp"]


@register_purifier("gdmp")
@dataclass(frozen=True, slots=True, kw_only=True)
class Gdmp:
    """Guided purification: several short rounds of DDPM, each step pulled toward the diffused input.

    Source: Wang et al. 2022, arXiv:2205.14969, algorithm 1, with the squared distance as guide; t = 36, 4 rounds.
    Differs: the guide's noise is normal, as the paper says (the public code draws it uniform), its gradient stays in
    the graph, and its strength is told by `pull`, the share of the way that a step goes toward the diffused input.
    Under attack: PGD with EOT through the whole chain, the guide included, leaves a fraction of what was reported.

    Args:
        step: t* in DDPM's schedule of 1000.
        steps: of the reverse process in each round; 0 for every t.
        rounds: how often.
        pull: share in [0, 1) of the way to the diffused input at each step; 0 for no guide.
        generator: by name.
    """

    step: int = 36
    steps: int = 0
    rounds: int = 4
    pull: float = 0.05
    generator: str = "fmnist-edm"

    def __post_init__(self) -> None:
        Level("1", None, self.step)
        if not 0 <= self.steps <= self.step:
            raise SpecError(f"gdmp: steps must be 0 (for all) to step = {self.step}, got {self.steps}.")
        if self.rounds < 1:
            raise SpecError(f"gdmp: rounds must be >= 1, got {self.rounds}.")
        if not 0 <= self.pull < 1:
            raise SpecError(f"gdmp: pull must be in [0, 1), got {self.pull:g}.")

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def evaluations(self) -> int:
        return self.rounds * (self.steps or self.step)

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """The state is (u, input), both in EDM's coordinates; the input goes along for the guide."""
        assert denoiser is not None
        Level("1", None, self.step).check(denoiser)
        places = torch.linspace(self.step - 1, 0, self.steps or self.step, dtype=torch.float64).round().long()
        sigmas = torch.cat([linear_schedule().sigmas[places], torch.zeros(1, dtype=torch.float64)])
        steps: list[Step] = []
        for round_ in range(self.rounds):
            stream = child_stream(rng, f"round {round_}")
            steps.append(_noise_again(float(sigmas[0]), stream))
            steps += [self._step(denoiser, stream, k, pair) for k, pair in enumerate(pairwise(sigmas.tolist()))]
        return Chain(lambda state: (to_generator_range(state[0]),) * 2, steps, leave)

    def _step(self, denoiser: Denoiser, rng: ExampleRng, k: int, pair: tuple[float, float]) -> Step:
        """DDPM's ancestral step (see `samplers.Ancestral`), then the pull."""
        sigma, after = pair
        ratio = after**2 / sigma**2

        def advance(state: State) -> State:
            u, given = state
            denoised: Tensor = denoiser(u, sigma)
            u = (1 - ratio) * denoised + ratio * u
            if after > 0:
                u = u + after * (1 - ratio) ** 0.5 * _normal(rng, "reverse", k, u)
            if self.pull and after > 0:
                u = u + self.pull * (given + after * _normal(rng, "guide", k, u) - u)
            return u, given

        return advance


def _noise_again(sigma: float, rng: ExampleRng) -> Step:
    def diffuse(state: State) -> State:
        u, given = state
        return u + sigma * _normal(rng, "diffuse", 0, u), given

    return diffuse


def _normal(rng: ExampleRng, purpose: str, k: int, like: Tensor) -> Tensor:
    return rng.normal(like.shape[1:], purpose, k, like.device).to(like.dtype)
