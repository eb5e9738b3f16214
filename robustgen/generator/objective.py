"""What a generator is trained to minimise: EDM's loss, and DDPM's simple loss.

An objective draws noise levels, and says what the loss of a row is; `denoiser` turns the trained network into the
`Denoiser` that belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from robustgen.generator.network_denoiser import DdpmDenoiser, EdmDenoiser
from robustgen.generator.views import VpSchedule, cosine_schedule, ddpm_scale, linear_schedule

__all__ = ["SCHEDULES", "DdpmObjective", "EdmObjective", "Objective"]

SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule}


class Objective(Protocol):
    """What a trainer needs to know of a loss."""

    @property
    def noise_scale(self) -> float:
        """What the network multiplies its noise level by, see `Unet`."""

    def sigma(self, n: int, rng: torch.Generator) -> Tensor:
        """(n,) float32 noise levels to train at, in generator units."""

    def denoiser(self, network: nn.Module, shape: tuple[int, int, int], classes: int) -> EdmDenoiser | DdpmDenoiser:
        """The network as a denoiser."""

    def loss(self, denoiser: Any, x: Tensor, noise: Tensor, sigma: Tensor, **conditions: Tensor | None) -> Tensor:
        """(B,) float32: the mean over pixels of the weighted squared error of each row.

        Args:
            denoiser: what `denoiser` gave.
            x: (B, C, H, W) float32, clean images in [-1, 1].
            noise: (B, C, H, W) float32, standard normal.
            sigma: (B,) float32.
            conditions: `label` and `augmentation` of F.
        """


@dataclass(frozen=True, kw_only=True)
class EdmObjective:
    """EDM: ln sigma ~ N(p_mean, p_std^2), squared error of D weighted by 1 / c_out^2.

    Source: Karras et al. 2022, eq. (8) and table 1.
    Differs: the sum over pixels is a mean, so that losses of different sizes compare, and Adam does not see it; the
    data is centred first, as c_skip is derived for data of mean 0.

    Args:
        sigma_data: standard deviation of the data.
        mean: of the data, one a channel.
        p_mean, p_std: of ln sigma.
        sigma_min, sigma_max: the range that samplers may use.
    """

    sigma_data: float
    mean: tuple[float, ...]
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    noise_scale: float = 100.0  # ln(sigma) / 4 runs over about 2.6 only

    def sigma(self, n: int, rng: torch.Generator) -> Tensor:
        return (self.p_mean + self.p_std * torch.randn(n, generator=rng)).exp()

    def denoiser(self, network: nn.Module, shape: tuple[int, int, int], classes: int) -> EdmDenoiser:
        return EdmDenoiser(
            network,
            shape,
            classes,
            sigma_data=self.sigma_data,
            mean=self.mean,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
        )

    def loss(
        self, denoiser: EdmDenoiser, x: Tensor, noise: Tensor, sigma: Tensor, **conditions: Tensor | None
    ) -> Tensor:
        level = sigma.reshape(-1, 1, 1, 1)
        error = denoiser.apply_network(x + level * noise, level, **conditions) - x
        return (denoiser.scaling.weight(level) * error.square()).mean((1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class DdpmObjective:
    """DDPM's simple loss: t uniform, squared error of the predicted noise (or of v).

    Source: Ho et al. 2020, eq. (14) and algorithm 1; Salimans & Ho 2022, appendix D, for v.

    Args:
        schedule: a name in `SCHEDULES`.
        steps: T.
        prediction: what the network predicts.
    """

    schedule: str = "linear"
    steps: int = 1000
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    noise_scale: float = 1.0

    @cached_property
    def levels(self) -> VpSchedule:
        """The noise schedule."""
        return SCHEDULES[self.schedule](self.steps)

    def sigma(self, n: int, rng: torch.Generator) -> Tensor:
        return self.levels.sigmas[torch.randint(self.steps, (n,), generator=rng)].float()

    def denoiser(self, network: nn.Module, shape: tuple[int, int, int], classes: int) -> DdpmDenoiser:
        return DdpmDenoiser(network, shape, classes, schedule=self.levels, prediction=self.prediction)

    def loss(
        self, denoiser: DdpmDenoiser, x: Tensor, noise: Tensor, sigma: Tensor, **conditions: Tensor | None
    ) -> Tensor:
        level = sigma.reshape(-1, 1, 1, 1)
        predicted = denoiser.apply_network(x + level * noise, level, **conditions)
        target = noise if self.prediction == "epsilon" else ddpm_scale(level) * (noise - level * x)
        return (predicted - target).square().mean((1, 2, 3))
