"""Likelihood maximisation: a few steps up the score, with noise on the way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser, generator_sigma, to_generator_range
from robustgen.purify.base import Chain, State, Step, register_purifier
from robustgen.purify.diffpure import leave
from robustgen.purify.levels import Level
from robustgen.rng import ExampleRng

__all__ = ["Likelihood"]


@register_purifier("likelihood")
@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """Walk up the likelihood: u += rate (D(u + sigma z; sigma) - u), sigma drawn anew each step.

    D - u is sigma^2 times the score of the smoothed data (Tweedie's formula), so each step ascends the likelihood that
    the generator gives to noisy copies of the image.
    Source: Yoon et al. 2021, arXiv:2106.06041 (score ascent after noise), with the noise levels that Chen et al. 2023,
    arXiv:2305.15241, use for likelihood maximisation. Differs: theirs is the gradient of the denoising loss, which asks
    for second derivatives of the network; this is the score itself.
    Under attack: likelihood maximisation falls to DiffHammer's adaptive attack.

    Args:
        steps: of the ascent.
        rate: share of the way to D in each step.
        low, high: between which sigma is drawn, in pixels of [0, 1].
        generator: by name.
    """

    steps: int = 5
    rate: float = 0.2
    low: float = 0.1
    high: float = 0.15
    generator: str = "fmnist-edm"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SpecError(f"likelihood: steps must be >= 1, got {self.steps}.")
        if not 0 < self.rate <= 1:
            raise SpecError(f"likelihood: rate must be in (0, 1], got {self.rate:g}.")
        if not 0 < self.low <= self.high:
            raise SpecError(f"likelihood: 0 < low <= high is needed, got {self.low:g} and {self.high:g}.")

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def evaluations(self) -> int:
        return self.steps

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """To [-1, 1], `steps` steps, back."""
        assert denoiser is not None
        for sigma in (self.low, self.high):
            Level("1", sigma).check(denoiser)
        steps = [self._step(denoiser, rng, k) for k in range(self.steps)]
        return Chain(lambda state: (to_generator_range(state[0]),), steps, leave)

    def _step(self, denoiser: Denoiser, rng: ExampleRng, k: int) -> Step:
        low, high = generator_sigma(self.low), generator_sigma(self.high)

        def advance(state: State) -> State:
            (u,) = state
            sigma = low + (high - low) * rng.uniform((), "sigma", k, u.device).to(u.dtype)
            noise = rng.normal(u.shape[1:], "noise", k, u.device).to(u.dtype)
            denoised: Tensor = denoiser(u + sigma.reshape(-1, 1, 1, 1) * noise, sigma)
            return (u + self.rate * (denoised - u),)

        return advance
