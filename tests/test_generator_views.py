"""Tests of the two views of a diffusion and their conversions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robustgen.errors import SpecError
from robustgen.generator.network_denoiser import EdmDenoiser
from robustgen.generator.objective import EdmObjective
from robustgen.generator.views import (
    EdmScaling,
    VpSchedule,
    cosine_schedule,
    ddpm_scale,
    denoised_to_noise,
    linear_schedule,
    noise_to_denoised,
    v_to_denoised,
    vp_sigma,
)


def test_linear_schedule_has_the_published_noise_levels() -> None:
    """sigma_t of Ho et al.'s schedule, computed independently and rounded."""
    sigmas = linear_schedule().sigmas
    for t, expected in ((1, 0.0100), (100, 0.3388), (250, 0.9530), (500, 3.424), (750, 17.25), (1000, 157.4)):
        assert float(sigmas[t - 1]) == pytest.approx(expected, rel=1e-3)
    assert float(linear_schedule().alphas_cumprod[-1]) == pytest.approx(4.036e-5, rel=1e-3)


def test_cosine_schedule_has_the_published_noise_levels() -> None:
    """sigma_1 and sigma_1000 of Nichol and Dhariwal's schedule."""
    sigmas = cosine_schedule().sigmas
    assert float(sigmas[0]) == pytest.approx(0.00643, rel=2e-3)
    assert float(sigmas[-1]) == pytest.approx(2.0e4, rel=0.05)


def test_schedules_equal_those_of_diffusers() -> None:
    """abar_t of both schedules agree with diffusers' own to float32 rounding."""
    from diffusers import DDPMScheduler

    for ours, name in ((linear_schedule(), "linear"), (cosine_schedule(), "squaredcos_cap_v2")):
        theirs = DDPMScheduler(num_train_timesteps=1000, beta_schedule=name).alphas_cumprod
        torch.testing.assert_close(ours.alphas_cumprod.float(), theirs, rtol=2e-3, atol=1e-9)


def test_sigma_and_t_are_inverse() -> None:
    """t -> sigma -> t, whole and in between, and the nearest t of each sigma_t is t."""
    schedule = linear_schedule()
    t = torch.tensor([0.0, 0.25, 17.5, 500.0, 998.9, 999.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.t(schedule.sigma(t)), t, rtol=0, atol=1e-9)
    assert torch.equal(schedule.nearest(schedule.sigmas), torch.arange(1000))


def test_sigmas_beyond_the_schedule_are_clamped() -> None:
    """Beyond its ends a schedule answers with its ends."""
    schedule = linear_schedule()
    assert torch.equal(schedule.nearest(torch.tensor([1e-6, 1e6])), torch.tensor([0, 999]))


def test_noise_and_v_convert_to_the_same_image() -> None:
    """D from eps, D from v, and eps from D round-trip, in float64."""
    rng = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 6, 1, 3, 3, generator=rng, dtype=torch.float64)
    sigma = torch.logspace(-2, 2, 6, dtype=torch.float64).reshape(-1, 1, 1, 1)
    x = x0 + sigma * noise
    scale = ddpm_scale(sigma)
    v = scale * noise - (1 - scale**2).sqrt() * x0
    torch.testing.assert_close(noise_to_denoised(x, sigma, noise), x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(v_to_denoised(x, sigma, v), x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(denoised_to_noise(x, sigma, x0), noise, rtol=0, atol=1e-11)


def test_continuous_vp_sigmas() -> None:
    """sigma(1) and sigma(1e-3) of the continuous VP schedule."""
    sigma = vp_sigma(torch.tensor([1.0, 1e-3], dtype=torch.float64))
    torch.testing.assert_close(sigma, torch.tensor([152.2, 0.0105], dtype=torch.float64), rtol=5e-3, atol=0)


def test_edm_scaling_keeps_unit_variance() -> None:
    """c_in makes the input of variance 1, and c_skip, c_out leave a target of variance 1 (EDM, appendix B.6)."""
    scaling, sigma = EdmScaling(0.7), torch.logspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(scaling.into(sigma) ** 2 * (sigma**2 + 0.49), torch.ones_like(sigma))
    skip = scaling.skip(sigma)
    target = ((1 - skip) ** 2 * 0.49 + skip**2 * sigma**2) / scaling.out(sigma) ** 2
    torch.testing.assert_close(target, torch.ones_like(sigma))
    torch.testing.assert_close(scaling.weight(sigma) * scaling.out(sigma) ** 2, torch.ones_like(sigma))


class _Zero(nn.Module):
    """F = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return x * self.weight


def test_edm_loss_of_a_silent_network_is_one_at_every_sigma() -> None:
    """With F = 0 and centred data of standard deviation sigma_data the expected loss a pixel is exactly 1."""
    objective = EdmObjective(sigma_data=0.5, mean=(0.25,))
    rng = torch.Generator().manual_seed(1)
    x = 0.25 + 0.5 * torch.randn(4000, 1, 4, 4, generator=rng)
    noise = torch.randn(x.shape, generator=rng)
    denoiser = objective.denoiser(_Zero(), (1, 4, 4), 0)
    assert isinstance(denoiser, EdmDenoiser)
    for sigma in (0.01, 0.5, 10.0):
        loss = objective.loss(denoiser, x, noise, torch.full((4000,), sigma), label=None)
        assert float(loss.detach().mean()) == pytest.approx(1, abs=0.02)


def test_edm_noise_levels_are_log_normal() -> None:
    """ln sigma of the training noise has the mean and standard deviation asked for."""
    sigma = EdmObjective(sigma_data=0.5, mean=(0.0,)).sigma(40_000, torch.Generator().manual_seed(2)).log()
    assert float(sigma.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(sigma.std()) == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize("bad", [[0.5], [0.5, 0.6], [0.5, 1.0], [0.5, 0.0], [0.5, math.nan]])
def test_impossible_schedules_are_refused(bad: list[float]) -> None:
    """A schedule falls, in (0, 1), with two steps or more."""
    with pytest.raises(SpecError, match="noise schedule"):
        VpSchedule(torch.tensor(bad, dtype=torch.float64))
