"""Samplers: from noise to an image, given a denoiser. Pure functions; the caller decides about gradients.

All work in EDM coordinates, x = x0 + sigma * noise, with the state in float64; only the denoiser sees float32. A
discrete DDPM is sampled on the sigmas of its schedule, where DDIM is exactly an Euler step of the flow.

Source: Karras et al. 2022, arXiv:2206.00364 (Euler, Heun, churn: algorithms 1 and 2); Ho et al. 2020, arXiv:2006.11239
(ancestral: algorithm 2); Song et al. 2021, arXiv:2010.02502 (DDIM: eq. 12 and 16).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from robustgen.errors import SpecError, unknown_name
from robustgen.generator.denoiser import Denoiser
from robustgen.generator.network_denoiser import DdpmDenoiser

__all__ = [
    "SAMPLERS",
    "Ancestral",
    "Ddim",
    "Denoise",
    "DpmSolver",
    "Euler",
    "Heun",
    "Noise",
    "Sampler",
    "denoise_with",
    "describe_sampler",
    "karras_sigmas",
    "parse_sampler",
    "spaced_sigmas",
]

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x float64, sigma float64 of no dimension) -> D float64
Noise = Callable[[int], Tensor]  # step -> standard normal of the shape of x, float64


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """(steps + 1,) float64, falling from sigma_max to sigma_min and then 0 (EDM, eq. 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def spaced_sigmas(denoiser: DdpmDenoiser, steps: int, start: float | None = None) -> Tensor:
    """(steps + 1,) float64: sigmas at evenly spaced t of a discrete schedule, from its end or `start`, then 0."""
    schedule = denoiser.schedule
    last = schedule.steps - 1 if start is None else int(schedule.nearest(torch.tensor(start)))
    if steps > last + 1:
        raise SpecError(f"this generator has {last + 1} noise levels to step through, got steps = {steps}.")
    t = torch.linspace(last, 0, steps, dtype=torch.float64).round()
    return torch.cat([schedule.sigmas[t.long()], torch.zeros(1, dtype=torch.float64)])


def _levels(denoiser: Denoiser, steps: int, start: float | None, rho: float) -> Tensor:
    """Karras' sigmas within what the denoiser was trained for, rounded to its grid where it has one."""
    highest = min(80.0, denoiser.sigma_max) if start is None else start
    lowest = max(0.002, denoiser.sigma_min)
    if steps == 1 or highest <= lowest:
        return torch.tensor([highest, 0.0], dtype=torch.float64)
    sigmas = karras_sigmas(steps, lowest, highest, rho)
    if isinstance(denoiser, DdpmDenoiser):
        t = denoiser.schedule.nearest(sigmas[:-1]).unique().flip(0)
        sigmas = torch.cat([denoiser.schedule.sigmas[t], sigmas[-1:]])
    return sigmas


class Sampler(Protocol):
    """A way from noise to an image."""

    def sigmas(self, denoiser: Denoiser, start: float | None = None) -> Tensor:
        """The noise levels it goes through, float64, falling, the last one 0; from `start`, None for pure noise."""

    def run(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Tensor:
        """From x at sigmas[0] to an image at sigmas[-1].

        Args:
            denoise: D, see `Denoise`.
            x: (B, C, H, W) float64.
            sigmas: as `sigmas` gives them.
            noise: fresh noise of a step; not called by deterministic samplers.
        """

    def evaluations(self, steps: int) -> int:
        """How often D is asked for that many intervals of sigma."""


def _check_steps(name: str, steps: int) -> None:
    if steps < 1:
        raise SpecError(f"{name}: steps must be >= 1, got {steps}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Euler:
    """Euler's method on the flow dx/dsigma = (x - D) / sigma (EDM, eq. 3), order 1."""

    steps: int = 18
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_steps("euler", self.steps)

    def sigmas(self, denoiser: Denoiser, start: float | None = None) -> Tensor:
        return _levels(denoiser, self.steps, start, self.rho)

    def evaluations(self, steps: int) -> int:
        return steps

    def run(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Tensor:
        for sigma, after in pairwise(sigmas):
            x = x + (after - sigma) * (x - denoise(x, sigma)) / sigma
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Heun:
    """EDM's sampler: Heun's method, order 2, with optional churn; 2 steps - 1 evaluations.

    Source: Karras et al. 2022, algorithm 2; with churn = 0 algorithm 1.

    Args:
        steps: N.
        rho: of the spacing of sigmas.
        churn: S_churn, how much noise is added and taken away again; 0 for a deterministic sampler.
        churn_min, churn_max: S_tmin and S_tmax, the sigmas between which this is done.
        churn_noise: S_noise, the standard deviation of the noise added.
    """

    steps: int = 18
    rho: float = 7.0
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        _check_steps("heun", self.steps)
        if self.churn < 0:
            raise SpecError(f"heun: churn must be >= 0, got {self.churn:g}.")

    def sigmas(self, denoiser: Denoiser, start: float | None = None) -> Tensor:
        return _levels(denoiser, self.steps, start, self.rho)

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1

    def run(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Tensor:
        steps = len(sigmas) - 1
        for i, (sigma, after) in enumerate(pairwise(sigmas)):
            if self.churn and self.churn_min <= sigma <= self.churn_max:  # lines 4 to 6: more noise for a moment
                gamma = min(self.churn / steps, math.sqrt(2) - 1)
                raised = sigma * (1 + gamma)
                x = x + (raised**2 - sigma**2).sqrt() * self.churn_noise * noise(i)
                sigma = raised
            slope = (x - denoise(x, sigma)) / sigma  # line 7
            ahead = x + (after - sigma) * slope  # line 8
            if after > 0:  # lines 9 to 11: the second order correction, which would divide by 0 in the last step
                slope = (slope + (ahead - denoise(ahead, after)) / after) / 2
                ahead = x + (after - sigma) * slope
            x = ahead
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Ddim:
    """DDIM on a discrete schedule at evenly spaced t; eta = 0 is deterministic, eta = 1 DDPM's own noise.

    Source: Song et al. 2021, eq. (12) with the sigma of eq. (16), divided by sqrt(abar) to be in EDM coordinates.
    """

    steps: int = 50
    eta: float = 0.0

    def __post_init__(self) -> None:
        _check_steps("ddim", self.steps)
        if not 0 <= self.eta <= 1:
            raise SpecError(f"ddim: eta must be in [0, 1], got {self.eta:g}.")

    def sigmas(self, denoiser: Denoiser, start: float | None = None) -> Tensor:
        if isinstance(denoiser, DdpmDenoiser):
            return spaced_sigmas(denoiser, self.steps, start)
        return _levels(denoiser, self.steps, start, 7.0)

    def evaluations(self, steps: int) -> int:
        return steps

    def run(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Tensor:
        for i, (sigma, after) in enumerate(pairwise(sigmas)):
            denoised = denoise(x, sigma)
            fresh = self.eta * after * (1 - after**2 / sigma**2).sqrt()  # of the noise that is left, so much is new
            kept = (after**2 - fresh**2).sqrt()
            x = denoised + kept * (x - denoised) / sigma
            if self.eta and after > 0:
                x = x + fresh * noise(i)
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestral:
    """DDPM's sampler: every t of the schedule, the noise of each step drawn anew.

    Source: Ho et al. 2020, algorithm 2. In EDM coordinates the posterior q(x_{t-1} | x_t, x0 = D) has the mean
    (1 - r) D + r x and the variance sigma'^2 (1 - r), r = sigma'^2 / sigma^2; no noise in the last step.

    Args:
        steps: evenly spaced t; 0 for all of the schedule.
        variance: "posterior" (beta tilde) or "beta", the two choices of section 3.2.
    """

    steps: int = 0
    variance: str = "posterior"

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise SpecError(f"ancestral: steps must be >= 0 (0 for all), got {self.steps}.")
        if self.variance not in ("posterior", "beta"):
            raise SpecError(f"ancestral: variance must be posterior or beta, got '{self.variance}'.")

    def sigmas(self, denoiser: Denoiser, start: float | None = None) -> Tensor:
        if not isinstance(denoiser, DdpmDenoiser):
            return _levels(denoiser, self.steps or 1000, start, 7.0)
        last = denoiser.schedule.steps - 1
        if start is not None:
            last = int(denoiser.schedule.nearest(torch.tensor(start)))
        return spaced_sigmas(denoiser, self.steps or last + 1, start)

    def evaluations(self, steps: int) -> int:
        return steps

    def run(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Tensor:
        for i, (sigma, after) in enumerate(pairwise(sigmas)):
            ratio = after**2 / sigma**2
            x = (1 - ratio) * denoise(x, sigma) + ratio * x
            if after > 0:
                # beta_t in EDM coordinates: 1 - abar_t / abar_s, divided by abar_s
                spread = sigma**2 - after**2 if self.variance == "beta" else after**2 * (1 - ratio)
                scale = (1 + after**2) / (1 + sigma**2) if self.variance == "beta" else 1.0
                x = x + (spread * scale).sqrt() * noise(i)
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class DpmSolver:
    """DPM-Solver++(2M): a two-step method of order 2 that asks D once a step.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2, in EDM coordinates, where alpha = 1 and lambda = -ln sigma.
    The first and the last step are of order 1, as the paper has it for few steps.
    """

    steps: int = 18
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_steps("dpm++", self.steps)

    def sigmas(self, denoiser: Denoiser, start: float | None = None) -> Tensor:
        return _levels(denoiser, self.steps, start, self.rho)

    def evaluations(self, steps: int) -> int:
        return steps

    def run(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Tensor:
        before, width_before = None, 0.0
        for sigma, after in pairwise(sigmas):
            denoised = denoise(x, sigma)
            if after == 0:
                return denoised
            width = float((sigma / after).log())  # h_i = lambda_i - lambda_{i-1}
            mixed = denoised
            if before is not None:
                ratio = width_before / width  # r_i
                mixed = denoised + (denoised - before) / (2 * ratio)
            x = (after / sigma) * x - math.expm1(-width) * mixed
            before, width_before = denoised, width
        return x


def denoise_with(denoiser: Denoiser, label: Tensor | None) -> Denoise:
    """A denoiser for samplers: a network is asked in float32, what is exact in float64; the answer is float64."""
    dtype = torch.float32 if next(denoiser.parameters(), None) is not None else torch.float64

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        out: Tensor = denoiser(x.to(dtype), sigma.to(dtype), label)
        return out.double()

    return denoise


SAMPLERS: dict[str, type[Any]] = {
    "heun": Heun,
    "euler": Euler,
    "ddim": Ddim,
    "ancestral": Ancestral,
    "dpm++": DpmSolver,
}


def parse_sampler(text: str) -> Sampler:
    """A sampler as typed: "heun" or "heun:steps=18:churn=40".

    Raises:
        SpecError: unknown sampler or parameter (the nearest is named), or a value that cannot be.
    """
    name, *settings = text.strip().split(":")
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    kind, options = SAMPLERS[name], {}
    known = {entry.name: entry.default for entry in fields(kind)}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise SpecError(
                f"sampler '{name}': expected parameter=value after ':', got '{setting}'; e.g. {name}:steps=20."
            )
        if key not in known:
            raise unknown_name(f"parameter of {name}", key, known)
        options[key] = _convert(name, key, value, type(known[key]))
    sampler: Sampler = kind(**options)
    return sampler


def describe_sampler(sampler: Sampler) -> str:
    """As one types it, without what is the default anyway: what `parse_sampler` takes."""
    name = next(name for name, kind in SAMPLERS.items() if kind is type(sampler))
    settings = [(entry.name, getattr(sampler, entry.name), entry.default) for entry in fields(SAMPLERS[name])]
    told = [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value, usual in settings
        if value != usual
    ]
    return ":".join([name, *told])


def _convert(name: str, key: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        wanted = "an integer" if kind is int else "a number"
        raise SpecError(f"sampler '{name}': {key} must be {wanted}, got '{value}'.") from None
