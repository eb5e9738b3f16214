"""One-shot denoising: noise, then one evaluation of the generator. What diffusion-denoised smoothing does."""

from __future__ import annotations

from dataclasses import dataclass

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser, generator_sigma
from robustgen.purify.base import Chain, State, register_purifier
from robustgen.purify.diffpure import diffuse, leave
from robustgen.purify.levels import Level
from robustgen.rng import ExampleRng

__all__ = ["OneShot"]


@register_purifier("one-shot")
@dataclass(frozen=True, slots=True, kw_only=True)
class OneShot:
    """Add noise and denoise in one evaluation: D(2 x - 1 + noise; sigma).

    Source: Carlini et al. 2023, arXiv:2206.10550, algorithm 1, without its vote.
    Under attack: its certificate holds; its gradient is exact and cheap, so there is nothing to hide behind.

    Args:
        sigma: of the noise in pixels of [0, 1].
        generator: by name.
    """

    sigma: float = 0.25
    generator: str = "fmnist-edm"

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise SpecError(f"one-shot: sigma must be above 0, in pixels of [0, 1], got {self.sigma:g}.")

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def evaluations(self) -> int:
        return 1

    def chain(self, denoiser: Denoiser | None, rng: ExampleRng) -> Chain:
        """Noise, D, back to [0, 1]."""
        assert denoiser is not None
        Level("1", self.sigma).check(denoiser)
        sigma = generator_sigma(self.sigma)

        def denoise(state: State) -> State:
            return (denoiser(state[0], sigma),)

        return Chain(diffuse(sigma, rng), [denoise], leave)
