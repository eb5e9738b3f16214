"""Two views of one diffusion: DDPM (discrete t, images shrink) and EDM (sigma, noise is added), and how to change.

All formulas are in EDM coordinates, where a noisy image is x = x0 + sigma * noise; DDPM's is
x_t = x / sqrt(1 + sigma^2).

Source: Ho et al. 2020, arXiv:2006.11239 (DDPM); Nichol & Dhariwal 2021, arXiv:2102.09672 (cosine schedule); Salimans &
Ho 2022, arXiv:2202.00512 (v prediction); Karras et al. 2022, arXiv:2206.00364 (EDM), table 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen.errors import SpecError

__all__ = [
    "EdmScaling",
    "VpSchedule",
    "cosine_schedule",
    "ddpm_scale",
    "denoised_to_noise",
    "linear_schedule",
    "noise_to_denoised",
    "v_to_denoised",
    "vp_sigma",
]


def ddpm_scale(sigma: Tensor) -> Tensor:
    """sqrt(abar) = 1 / sqrt(1 + sigma^2): multiplies an EDM image to give DDPM's."""
    return (1 + sigma * sigma).rsqrt()


def noise_to_denoised(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """D = x - sigma * eps."""
    return x - sigma * noise


def denoised_to_noise(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """eps = (x - D) / sigma; also dx/dsigma of the probability flow (EDM, eq. 3 with s = 1)."""
    return (x - denoised) / sigma


def v_to_denoised(x: Tensor, sigma: Tensor, v: Tensor) -> Tensor:
    """D from v = sqrt(abar) eps - sqrt(1 - abar) x0, where sqrt(1 - abar) = sigma sqrt(abar)."""
    scale = ddpm_scale(sigma)
    return scale * (scale * x - sigma * v)


def vp_sigma(t: Tensor, beta_d: float = 19.9, beta_min: float = 0.1) -> Tensor:
    """The continuous VP schedule, t in [0, 1]: sigma = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) (EDM, table 1)."""
    return torch.expm1(0.5 * beta_d * t * t + beta_min * t).sqrt()


@dataclass(frozen=True, slots=True)
class EdmScaling:
    """EDM's preconditioning: D = c_skip x + c_out F(c_in x; c_noise), for centred data of deviation sigma_data.

    Source: Karras et al. 2022, table 1, column "Ours", and eq. (7).
    """

    sigma_data: float

    def skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data * (sigma**2 + self.sigma_data**2).rsqrt()

    def into(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def noise(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """Of the squared error in the loss: 1 / c_out^2, so that with F = 0 the loss a pixel is 1 at every sigma."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True, eq=False)
class VpSchedule:
    """A discrete schedule, by its abar_t for t = 0 .. T - 1 (the paper's t less 1).

    Args:
        alphas_cumprod: (T,) float64, falling, in (0, 1).

    Raises:
        SpecError: not such numbers.
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        if a.ndim != 1 or len(a) < 2 or not bool(((a > 0) & (a < 1)).all()) or not bool((a.diff() < 0).all()):
            raise SpecError("a noise schedule needs two or more abar_t, falling, in (0, 1).")

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    @property
    def sigmas(self) -> Tensor:
        """(T,) float64, rising: sigma_t = sqrt((1 - abar_t) / abar_t)."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """The sigma of t, float64; t need not be whole: linear in ln sigma in between."""
        logs = self.sigmas.log().to(t.device)
        t = t.double().clamp(0, self.steps - 1)
        low = t.floor().long().clamp(max=self.steps - 2)
        return torch.lerp(logs[low], logs[low + 1], t - low).exp()

    def t(self, sigma: Tensor) -> Tensor:
        """The t of a sigma, float64, not whole in general: the inverse of `sigma`; clamped to 0 .. T - 1."""
        logs = self.sigmas.log().to(sigma.device)
        at = sigma.double().log()
        low = (torch.searchsorted(logs, at.contiguous()) - 1).clamp(0, self.steps - 2)
        return (low + (at - logs[low]) / (logs[low + 1] - logs[low])).clamp(0, self.steps - 1)

    def nearest(self, sigma: Tensor) -> Tensor:
        """The whole t whose sigma is nearest in ln sigma, int64."""
        return self.t(sigma).round().long()


def linear_schedule(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> VpSchedule:
    """beta_t from `first` to `last` in equal steps (Ho et al. 2020, section 4)."""
    betas = torch.linspace(first, last, steps, dtype=torch.float64)
    return VpSchedule((1 - betas).cumprod(0))


def cosine_schedule(steps: int = 1000) -> VpSchedule:
    """abar_t = f(t) / f(0), f(t) = cos^2((t/T + 0.008) / 1.008 * pi/2), beta_t <= 0.999 (Nichol & Dhariwal, eq. 17)."""
    f = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * (math.pi / 2)) ** 2
    betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return VpSchedule((1 - betas).cumprod(0))
