"""How far an image is diffused before it is purified: t* by time, name, step or sigma.

Diffusion's images are in [-1, 1]; sigma as users type it is in pixels of [0, 1], half of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from robustgen.errors import SpecError, unknown_name
from robustgen.generator.denoiser import Denoiser, generator_sigma
from robustgen.generator.views import linear_schedule

__all__ = ["PUBLISHED", "Level", "vp_beta", "vp_log_abar"]

PUBLISHED = {"cifar10-linf": 0.1, "cifar10-l2": 0.075, "imagenet-linf": 0.15, "celeba-hq-linf": 0.5}  # t* of DiffPure
_STEPS = 1000  # of the discrete schedule that `step` counts in


def vp_log_abar(t: float) -> float:
    """ln abar(t) of the VP-SDE with beta(t) = 0.1 + 19.9 t (Song et al. 2021, arXiv:2011.13456, eq. 32 and 33)."""
    return -0.1 * t - 9.95 * t * t


def vp_beta(t: float) -> float:
    """beta(t) of the VP-SDE."""
    return 0.1 + 19.9 * t


@dataclass(frozen=True, slots=True)
class Level:
    """A noise level; exactly one way of saying it is used: step, else sigma, else t.

    Args:
        t: time of the VP-SDE in (0, 1], or a name in `PUBLISHED`.
        sigma: of the added noise, in pixels of [0, 1].
        step: of the discrete linear schedule, 1 to 1000.

    Raises:
        SpecError: two ways at once, or a level that there is not.
    """

    t: str
    sigma: float | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        if self.sigma is not None and self.step is not None:
            raise SpecError("give sigma or step, not both.")
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise SpecError(f"sigma must be above 0, in pixels of [0, 1], got {self.sigma:g}.")
        if self.step is not None and not 1 <= self.step <= _STEPS:
            raise SpecError(f"step must be 1 to {_STEPS}, a place in DDPM's schedule, got {self.step}.")
        if self.sigma is None and self.step is None and not 0 < self.time <= 1:
            raise SpecError(f"t must be in (0, 1], or one of {', '.join(PUBLISHED)}, got {self.t}.")

    @property
    def time(self) -> float:
        """t of the VP-SDE; the solution of abar(t) = 1 / (1 + sigma^2) where sigma or step was given."""
        if self.sigma is not None or self.step is not None:
            grown = math.log1p(self.generator_sigma**2)
            return (-0.1 + math.sqrt(0.01 + 39.8 * grown)) / 19.9
        try:
            return float(self.t)
        except ValueError:
            if self.t in PUBLISHED:
                return PUBLISHED[self.t]
            raise unknown_name("t", self.t, PUBLISHED, hint="Or a number in (0, 1].") from None

    @property
    def generator_sigma(self) -> float:
        """Standard deviation of the noise beside images in [-1, 1]: sqrt((1 - abar) / abar)."""
        if self.sigma is not None:
            return generator_sigma(self.sigma)
        if self.step is not None:
            return float(linear_schedule(_STEPS).sigmas[self.step - 1])
        return math.sqrt(math.expm1(-vp_log_abar(self.time)))

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a level that a generator has not.

        Raises:
            SpecError: sigma outside its range.
        """
        if not denoiser.sigma_min <= self.generator_sigma <= denoiser.sigma_max:
            raise SpecError(
                f"noise of sigma {self.generator_sigma / 2:.3g} (t = {self.time:.3g}) is outside "
                f"{denoiser.sigma_min / 2:.3g} .. {denoiser.sigma_max / 2:.3g}, the range of this generator."
            )
