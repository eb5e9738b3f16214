"""Denoisers with a network inside: EDM's preconditioning, and DDPM's prediction at a discrete t."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser
from robustgen.generator.views import EdmScaling, VpSchedule, ddpm_scale, noise_to_denoised, v_to_denoised

__all__ = ["DdpmDenoiser", "EdmDenoiser", "Prediction"]

Prediction = Literal["epsilon", "v_prediction", "sample"]


class EdmDenoiser(Denoiser):
    """D = mean + c_skip z + c_out F(c_in z; c_noise, class) with z = x - mean.

    Source: Karras et al. 2022, eq. (7). The image stays in its own dtype; only F runs in that of its weights.

    Args:
        network: F(x, c_noise, label), see `robustgen.generator.network.Unet`.
        shape, classes, sigma_min, sigma_max: see `Denoiser`.
        sigma_data: standard deviation of the data.
        mean: of the data, one a channel.
    """

    mean: Tensor

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, int, int],
        classes: int,
        *,
        sigma_data: float,
        mean: tuple[float, ...],
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        super().__init__(shape, classes, sigma_min, sigma_max)
        self.network, self.scaling = network, EdmScaling(sigma_data)
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)

    def _denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        return self.apply_network(x, sigma, label=label)

    def apply_network(self, x: Tensor, sigma: Tensor, **conditions: Tensor | None) -> Tensor:
        """D for sigma (B, 1, 1, 1), with whatever conditions F takes."""
        mean = self.mean.to(x)
        centred, scaling = x - mean, self.scaling
        c_noise = scaling.noise(sigma.reshape(-1).float())
        dtype = _dtype(self.network)
        out = self.network((scaling.into(sigma) * centred).to(dtype), c_noise, **conditions).to(x.dtype)
        denoised: Tensor = mean + scaling.skip(sigma) * centred + scaling.out(sigma) * out
        return denoised


class DdpmDenoiser(Denoiser):
    """D from a network that predicts noise, v or the image at a discrete t; sigma is rounded to the nearest t.

    D = x - s eps(x / sqrt(1 + s^2), t): with s = sigma_t exact, otherwise off by the rounding, at most half a step.

    Args:
        network: F(x_t, t, label), t (B,) whole numbers from 0.
        shape, classes: see `Denoiser`; sigma_min and sigma_max are those of the schedule.
        schedule: its abar_t.
        prediction: what F predicts.

    Raises:
        SpecError: another prediction.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, int, int],
        classes: int,
        *,
        schedule: VpSchedule,
        prediction: Prediction = "epsilon",
    ) -> None:
        sigmas = schedule.sigmas
        super().__init__(shape, classes, float(sigmas[0]), float(sigmas[-1]))
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise SpecError(f"prediction must be epsilon, v_prediction or sample, got '{prediction}'.")
        self.network, self.schedule, self.prediction = network, schedule, prediction

    def _denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        out = self.apply_network(x, sigma, label=label)
        if self.prediction == "epsilon":
            return noise_to_denoised(x, sigma, out)
        return v_to_denoised(x, sigma, out) if self.prediction == "v_prediction" else out

    def apply_network(self, x: Tensor, sigma: Tensor, **conditions: Tensor | None) -> Tensor:
        """What the network predicts, for sigma (B, 1, 1, 1), with whatever conditions F takes."""
        t = self.schedule.nearest(sigma.reshape(-1))
        out: Tensor = self.network((ddpm_scale(sigma) * x).to(_dtype(self.network)), t, **conditions).to(x.dtype)
        return out


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype
