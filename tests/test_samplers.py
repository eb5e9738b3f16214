"""Tests of the samplers against closed forms and against diffusers' schedulers, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.analytic import GaussianDenoiser, MixtureDenoiser
from robustgen.generator.denoiser import Denoiser
from robustgen.generator.draw import draw
from robustgen.generator.network_denoiser import DdpmDenoiser
from robustgen.generator.samplers import (
    SAMPLERS,
    Ancestral,
    Ddim,
    DpmSolver,
    Euler,
    Heun,
    Sampler,
    denoise_with,
    describe_sampler,
    karras_sigmas,
    parse_sampler,
    spaced_sigmas,
)
from robustgen.generator.views import linear_schedule
from tests.generator_helpers import make_ddpm

SHAPE = (1, 2, 2)
NO_NOISE: Callable[[int], Tensor] = lambda step: torch.zeros(())  # noqa: E731 -- a stub


def gaussian(std: float = 0.5, mean: float = 0.0) -> GaussianDenoiser:
    """Data N(mean, std^2)."""
    return GaussianDenoiser(torch.full(SHAPE, mean), std)


def output_std(sampler: Sampler, stop: float = 0.002) -> float:
    """Standard deviation of the output on N(0, 0.5^2) data for a start N(0, 80^2): every sampler is affine here."""
    sigmas = karras_sigmas(sampler.steps, stop, 80.0)  # type: ignore[attr-defined]
    x = torch.full((1, *SHAPE), 80.0, dtype=torch.float64)
    return float(sampler.run(denoise_with(gaussian(), None), x, sigmas, NO_NOISE)[0, 0, 0, 0])


@pytest.mark.parametrize(
    ("kind", "steps", "expected"),
    [
        (Euler, 5, 0.23363),
        (Euler, 18, 0.42303),
        (Euler, 40, 0.46485),
        (Heun, 5, 1.25789),
        (Heun, 10, 0.60980),
        (Heun, 18, 0.52762),
        (Heun, 40, 0.50488),
    ],
)
def test_output_std_on_gaussian_data_is_the_computed_one(kind: Any, steps: int, expected: float) -> None:
    """Euler and Heun on EDM's grid reproduce the standard deviations computed by hand."""
    assert output_std(kind(steps=steps)) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("kind", "order"), [(Euler, 1), (Heun, 2), (DpmSolver, 2)])
def test_convergence_order(kind: Any, order: int) -> None:
    """Halving the steps changes the error at sigma_min by 2^order, against the closed form of the flow."""
    exact = float(gaussian().flow(torch.full(SHAPE, 80.0), 80.0, 0.002)[0, 0, 0])

    def error(steps: int) -> float:
        sigmas = karras_sigmas(steps, 0.002, 80.0)[:-1]  # the last step to 0 is of order 1 for all
        x = torch.full((1, *SHAPE), 80.0, dtype=torch.float64)
        out = kind(steps=steps).run(denoise_with(gaussian(), None), x, sigmas, NO_NOISE)
        return abs(float(out[0, 0, 0, 0]) - exact)

    slope = math.log2(error(144) / error(288))
    assert slope == pytest.approx(order, abs=0.1)


def test_ddim_is_an_euler_step_of_the_flow() -> None:
    """On the same sigmas DDIM with eta 0 and Euler agree to rounding."""
    sigmas = karras_sigmas(12, 0.01, 50.0)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 50
    denoise = denoise_with(gaussian(0.3, 0.2), None)
    ours, theirs = (kind(steps=12).run(denoise, x, sigmas, NO_NOISE) for kind in (Ddim, Euler))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_heun_with_churn_keeps_the_data_distribution() -> None:
    """Churned samples of Gaussian data have its mean and standard deviation, and differ from the plain ones."""
    denoiser = gaussian(0.5, 0.3)
    churned = draw(denoiser, Heun(steps=60, churn=30.0, churn_noise=1.0), range(3000), seed=1, batch_size=3000)
    plain = draw(denoiser, Heun(steps=60), range(3000), seed=1, batch_size=3000)
    assert float(churned.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(churned.std()) == pytest.approx(0.5, abs=0.02)
    assert float((churned - plain).abs().mean()) > 0.1


def test_ancestral_sampling_gives_the_data_distribution() -> None:
    """DDPM's sampler on exact denoisers of Gaussian data, with both variances, ends at its mean and deviation."""
    denoiser = gaussian(0.5, -0.2)
    for variance in ("posterior", "beta"):
        x = draw(denoiser, Ancestral(steps=400, variance=variance), range(2000), seed=2, batch_size=2000)
        assert float(x.mean()) == pytest.approx(-0.2, abs=0.02)
        assert float(x.std()) == pytest.approx(0.5, abs=0.02)


def _scheduler_loop(
    scheduler: Any, denoiser: DdpmDenoiser, x: Tensor, noises: dict[int, Tensor] | None
) -> list[Tensor]:
    """A diffusers scheduler driven by hand in float64, with given noise; its states x_t, in order."""
    states = []
    for i, t in enumerate(scheduler.timesteps):
        eps = denoiser.network(x, torch.full((len(x),), int(t)), None)
        if noises is not None:
            mean = scheduler.step(eps, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
            drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
            spread = scheduler._get_variance(int(t)) ** 0.5 if int(t) > 0 else 0.0
            x = mean - spread * drawn + spread * noises[i]
        else:
            x = scheduler.step(eps, t, x).prev_sample
        states.append(x)
    return states


class _Recorder:
    """A denoiser for samplers that keeps the states it is asked about, in DDPM's coordinates."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.states = denoiser, list[Tensor]()

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.states.append(x / (1 + sigma**2).sqrt())
        out: Tensor = self.denoiser(x, sigma)
        return out


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_equals_the_ddpm_scheduler_of_diffusers_step_by_step(variance: str) -> None:
    """With the same network and the same noise, every x_t of the two agree; in float64, to the scheduler's float32."""
    from diffusers import DDPMScheduler

    denoiser = make_ddpm(steps=60)
    scheduler = DDPMScheduler(num_train_timesteps=60, variance_type=variance, clip_sample=False)
    scheduler.set_timesteps(60)
    rng = torch.Generator().manual_seed(3)
    noises = {i: torch.randn(2, *denoiser.shape, generator=rng, dtype=torch.float64) for i in range(60)}
    start = torch.randn(2, *denoiser.shape, generator=rng, dtype=torch.float64)
    theirs = _scheduler_loop(scheduler, denoiser, start, noises)
    ours = Ancestral(variance="posterior" if variance == "fixed_small" else "beta")
    sigmas, recorder = ours.sigmas(denoiser), _Recorder(denoiser)
    last = ours.run(recorder, start * (1 + sigmas[0] ** 2).sqrt(), sigmas, lambda i: noises[i])
    for mine, other in zip([*recorder.states[1:], last], theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_equals_the_ddim_scheduler_of_diffusers_step_by_step(eta: float) -> None:
    """Ten steps on the scheduler's own t, the same network and noise, every state compared."""
    from diffusers import DDIMScheduler

    denoiser = make_ddpm(steps=60)
    scheduler = DDIMScheduler(num_train_timesteps=60, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps
    sigmas = torch.cat([denoiser.schedule.sigmas[t], torch.zeros(1, dtype=torch.float64)])
    rng = torch.Generator().manual_seed(4)
    noises = torch.randn(10, 2, *denoiser.shape, generator=rng, dtype=torch.float64)
    x = start = torch.randn(2, *denoiser.shape, generator=rng, dtype=torch.float64)
    recorder = _Recorder(denoiser)
    last = Ddim(steps=10, eta=eta).run(recorder, start * (1 + sigmas[0] ** 2).sqrt(), sigmas, lambda i: noises[i])
    for i, mine in enumerate([*recorder.states[1:], last]):
        eps = denoiser.network(x, torch.full((2,), int(t[i])), None)
        x = scheduler.step(eps, t[i], x, eta=eta, variance_noise=noises[i] if eta else None).prev_sample
        torch.testing.assert_close(mine, x, rtol=1e-4, atol=1e-5)


def test_dpm_solver_equals_the_scheduler_of_diffusers() -> None:
    """DPM-Solver++(2M) on Karras' sigmas, the same network on both sides."""
    from diffusers import EDMDPMSolverMultistepScheduler

    steps, std = 12, 0.5
    scheduler = EDMDPMSolverMultistepScheduler(sigma_min=0.01, sigma_max=20.0, sigma_data=std, final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    mixture = MixtureDenoiser(torch.tensor([-0.7, 0.1, 0.6]).reshape(3, 1, 1, 1).expand(3, *SHAPE).clone())
    sigmas = scheduler.sigmas.double()
    start = 20.0 * torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = start
    for sigma, t in zip(sigmas, scheduler.timesteps, strict=False):
        denoised = mixture(x, sigma)
        skip, out = std**2 / (sigma**2 + std**2), sigma * std / (sigma**2 + std**2).sqrt()
        x = scheduler.step((denoised - skip * x) / out, t, x).prev_sample.double()
    ours = DpmSolver(steps=steps).run(denoise_with(mixture, None), start, sigmas, NO_NOISE)
    torch.testing.assert_close(ours, x, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_sampling_a_mixture_gives_its_points(name: str) -> None:
    """Whatever the sampler, an exact mixture of points is sampled at its points, of the class asked for."""
    points = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(6)) * 2 - 1
    denoiser = MixtureDenoiser(points, torch.tensor([0, 0, 0, 1, 1, 1]))
    sampler = parse_sampler(f"{name}:steps=60")
    x = draw(denoiser, sampler, range(8), torch.tensor([0, 1] * 4), seed=3)
    distance, nearest = torch.cdist(x.flatten(1), points.flatten(1)).min(1)
    assert float(distance.max()) < 0.02
    assert (nearest // 3).tolist() == [0, 1] * 4


@pytest.mark.parametrize("text", ["heun:steps=6", "heun:steps=6:churn=10", "ancestral:steps=8", "ddim:steps=6:eta=0.5"])
def test_images_depend_on_seed_and_id_alone(text: str) -> None:
    """Batch size and order of the ids change no image; another seed changes all."""
    denoiser, sampler = gaussian(0.4, 0.1), parse_sampler(text)
    together = draw(denoiser, sampler, range(5), seed=9)
    single = torch.cat([draw(denoiser, sampler, [i], seed=9, batch_size=1) for i in (4, 0, 2)])
    torch.testing.assert_close(single, together[[4, 0, 2]], rtol=0, atol=1e-6)
    assert float((draw(denoiser, sampler, range(5), seed=10) - together).abs().min()) > 1e-6


def test_heun_asks_twice_a_step_but_once_in_the_last() -> None:
    """2 N - 1 evaluations, as said."""
    recorder = _Recorder(gaussian())
    Heun(steps=7).run(recorder, torch.zeros(1, *SHAPE, dtype=torch.float64), karras_sigmas(7, 0.01, 10), NO_NOISE)
    assert len(recorder.states) == 13 == Heun().evaluations(7)


def test_samplers_can_start_anywhere() -> None:
    """From a noisy image at sigma 0.5 every sampler's levels begin there, and stay below it."""
    for kind in SAMPLERS.values():
        for denoiser in (gaussian(), make_ddpm(steps=60)):
            sigmas = kind(steps=5).sigmas(denoiser, 0.5)
            assert float(sigmas[0]) == pytest.approx(0.5, rel=0.2)
            assert bool((sigmas.diff() < 0).all())
            assert float(sigmas[-1]) == 0


def test_one_step_is_the_denoiser() -> None:
    """With a single step every deterministic sampler returns D at the first sigma."""
    denoiser = gaussian(0.5, 0.3)
    x = torch.full((1, *SHAPE), 3.0, dtype=torch.float64)
    for sampler in (Heun(steps=1), Euler(steps=1), Ddim(steps=1), DpmSolver(steps=1)):
        sigmas = sampler.sigmas(denoiser, 2.0)
        out = sampler.run(denoise_with(denoiser, None), x, sigmas, NO_NOISE)
        torch.testing.assert_close(out, denoiser(x, 2.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("huen", "did you mean 'heun'"),
        ("heun:stepps=3", "did you mean 'steps'"),
        ("heun:steps", "expected parameter=value"),
        ("heun:steps=ten", "must be an integer"),
        ("heun:steps=0", "steps must be >= 1"),
        ("heun:churn=-1", "churn must be >= 0"),
        ("ddim:eta=2", "eta must be in"),
        ("ancestral:variance=small", "posterior or beta"),
        ("ancestral:steps=-1", "steps must be >= 0"),
        ("dpm++:steps=0", "steps must be >= 1"),
    ],
)
def test_impossible_samplers_are_refused(text: str, message: str) -> None:
    """One sentence that names the parameter and what it must be."""
    with pytest.raises(SpecError, match=message):
        parse_sampler(text)


def test_more_steps_than_noise_levels_are_refused() -> None:
    """A discrete schedule has only so many."""
    with pytest.raises(SpecError, match="60 noise levels"):
        spaced_sigmas(make_ddpm(steps=60), 61)


def test_karras_grid_is_the_published_one() -> None:
    """The 18 steps of the paper."""
    sigmas = karras_sigmas(18, 0.002, 80)
    expected = torch.tensor([80, 57.586, 40.786, 28.375], dtype=torch.float64)
    torch.testing.assert_close(sigmas[:4], expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(sigmas[-4:], torch.tensor([0.0229, 0.0075, 0.002, 0.0]).double(), rtol=0.01, atol=0)


def test_ddpm_denoiser_recovers_a_gaussian_whose_noise_is_predicted_exactly() -> None:
    """A network that is the exact eps of Gaussian data makes the denoiser equal the analytic one at every sigma_t."""
    schedule = linear_schedule(100)
    exact = gaussian(0.5, 0.2)

    class Eps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            abar = schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
            sigma = ((1 - abar) / abar).sqrt()
            z = x / abar.sqrt()
            out: Tensor = (z - exact._denoise(z, sigma, None)) / sigma
            return out

    denoiser = DdpmDenoiser(Eps(), SHAPE, 0, schedule=schedule)
    x = torch.randn(100, *SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, schedule.sigmas), exact(x, schedule.sigmas), rtol=0, atol=1e-10)


@pytest.mark.parametrize("text", ["heun", "heun:steps=7:churn=40", "dpm++:steps=10", "ddim:steps=50", "ancestral"])
def test_a_sampler_as_typed(text: str) -> None:
    """What is said of a sampler gives that sampler again, and leaves out what is the default."""
    sampler = parse_sampler(text)
    assert parse_sampler(describe_sampler(sampler)) == sampler
    assert len(describe_sampler(sampler)) <= len(text)
