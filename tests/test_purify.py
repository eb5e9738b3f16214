"""Purifiers and the gradients that cross them, against closed forms, plain autograd and reference filters."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

import robustgen
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.errors import SpecError
from robustgen.generator.analytic import GaussianDenoiser
from robustgen.generator.denoiser import Denoiser
from robustgen.purify import gradients
from robustgen.purify.base import PURIFIERS, Chain, Purifier, run_chain
from robustgen.purify.diffpure import REVERSE, DiffPure
from robustgen.purify.gdmp import Gdmp
from robustgen.purify.gradients import cross
from robustgen.purify.jpeg import Jpeg
from robustgen.purify.levels import Level, vp_log_abar
from robustgen.purify.likelihood import Likelihood
from robustgen.purify.median import median_filter
from robustgen.purify.one_shot import OneShot
from robustgen.purify.parse import describe, parse_purifier
from robustgen.purify.repeat import Repeat
from robustgen.purify.resize_pad import ResizePad
from robustgen.purify.squeezing import bypass, calibrate
from robustgen.purify.total_variation import TotalVariation
from robustgen.rng import ExampleRng, child_stream
from robustgen.threat import ThreatModel

DIFFUSION: list[Purifier] = [
    *(DiffPure(steps=4, reverse=reverse) for reverse in REVERSE),
    Gdmp(steps=2, rounds=2),
    OneShot(),
    Likelihood(steps=3),
    Repeat(rounds=2, of=DiffPure(t="0.02", steps=2)),
]
SHAPE = (2, 4, 6)


class Blurred(Denoiser):
    """Data that is one of five points plus normal noise of 0.4: D in closed form, not linear, smooth at every sigma."""

    def __init__(self) -> None:
        super().__init__(SHAPE, 0, 0.0, math.inf)
        generator = torch.Generator().manual_seed(3)
        self.register_buffer("points", torch.rand(5, *SHAPE, generator=generator, dtype=torch.float64) * 2 - 1)

    def _denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """Posterior weights of the points, then each point's own posterior mean."""
        points, s2 = torch.as_tensor(self.points), sigma**2
        away = x[:, None] - points
        weights = (-away.square().flatten(2).sum(2) / (2 * (s2.flatten(1) + 0.16))).softmax(1)
        means = points + (0.16 / (0.16 + s2))[:, None] * away
        return (weights[:, :, None, None, None] * means).sum(1)


@pytest.fixture
def denoiser() -> Denoiser:
    """A smooth, exact one."""
    return Blurred()


@pytest.fixture
def x() -> Tensor:
    """Eight images, float64."""
    return torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def rows(n: int, seed: int = 0) -> ExampleRng:
    """Streams for n images."""
    return ExampleRng.of(seed, range(n))


def gradient(chain: Chain, x: Tensor, mode: Any = "full", **options: Any) -> Tensor:
    """Of a function that is not linear in the purified image."""
    leaf = x.clone().requires_grad_()
    out = cross(chain, leaf, mode, **options)
    (grad,) = torch.autograd.grad((out.sin() * torch.arange(out.numel()).reshape(out.shape)).sum(), leaf)
    return grad


@pytest.mark.parametrize("purifier", DIFFUSION, ids=describe)
def test_full_gradient_is_that_of_plain_autograd(purifier: Purifier, denoiser: Denoiser, x: Tensor) -> None:
    """To 1e-10 in float64; a row alone gets what it gets in a batch."""
    full = gradient(purifier.chain(denoiser, rows(8)), x)
    plain = gradient(purifier.chain(denoiser, rows(8)), x, "autograd")
    assert float((full - plain).abs().max() / plain.abs().max()) < 1e-10
    out = run_chain(purifier.chain(denoiser, rows(8)), x)
    alone = run_chain(purifier.chain(denoiser, rows(8).take(torch.tensor([5]))), x[5:6])
    torch.testing.assert_close(alone, out[5:6])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_gradcheck(steps: int, denoiser: Denoiser, x: Tensor) -> None:
    """Central differences of the map with its noise fixed agree with the checkpointed gradient."""
    chain = DiffPure(steps=steps).chain(denoiser, rows(2))
    leaf = x[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cross(chain, z, "full"), (leaf,))


@pytest.mark.parametrize("kept", [0, 3, 7])
def test_the_last_graphs_are_kept_where_they_fit(kept: int, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those steps are run once, the others twice; the gradient is the same."""
    runs = 0

    class Counted(Blurred):
        def _denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
            nonlocal runs
            runs += 1
            return super()._denoise(x, sigma, label)

    chain = DiffPure(steps=7).chain(Counted(), rows(8))
    _, _, size = gradients._with_graph(chain.steps[0], chain.enter((x,)))
    monkeypatch.setattr(gradients, "_ROOM", int((kept + 0.5) * size))
    runs = 0
    found = gradient(chain, x)
    assert runs == 14 - kept
    torch.testing.assert_close(found, gradient(chain, x, "autograd"))


@pytest.mark.parametrize("reverse", REVERSE)
def test_gradient_for_gaussian_data_is_one_known_number(reverse: str, x: Tensor) -> None:
    """Every step is affine, so the gradient of the whole is a number; that of the SDE follows from its coefficients."""
    mean, std, t, steps = torch.zeros(SHAPE), 0.5, 0.1, 10
    purifier = DiffPure(t=str(t), steps=steps, reverse=reverse)
    leaf = x.clone().requires_grad_()
    out = cross(purifier.chain(GaussianDenoiser(mean, std), rows(8)), leaf, "full")
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    assert float(grad.std()) < 1e-12
    if reverse != "sde":
        return
    h, slope = (t - 1e-5) / steps, math.exp(0.5 * vp_log_abar(t))
    for k in range(steps):
        at = t - k * h
        kept = math.exp(vp_log_abar(at))
        slope *= 1 + h * (0.1 + 19.9 * at) * (0.5 - 1 / (kept * std**2 + 1 - kept))
    assert float(grad.mean()) == pytest.approx(slope, rel=1e-10)


@pytest.mark.parametrize("reverse", ["sde", "ancestral"])
def test_diffpure_of_gaussian_data_draws_from_the_posterior(reverse: str) -> None:
    """Mean and variance of P(x) are those of x0 given the noised x, averaged over the noise."""
    std, value = 0.5, 0.8
    level = Level("0.1")
    denoiser = GaussianDenoiser(torch.zeros(1, 40, 40), std)
    x = torch.full((10, 1, 40, 40), value, dtype=torch.float64)
    out = run_chain(DiffPure(steps=200, reverse=reverse).chain(denoiser, rows(10)), x)
    s2 = level.generator_sigma**2
    share = std**2 / (std**2 + s2)  # D = share * noisy
    mean = (share * (2 * value - 1) + 1) / 2
    variance = (share**2 * s2 + share * s2) / 4  # of D over the noise, and of x0 around D
    assert float(out.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / out.numel()) + 0.002)
    assert float(out.var()) == pytest.approx(variance, rel=0.05)


def test_adjoint_is_not_the_exact_gradient(denoiser: Denoiser, x: Tensor) -> None:
    """It differs, by less with more steps, and does not get there."""
    errors = []
    for steps in (5, 50, 500):
        purifier = DiffPure(steps=steps)
        exact, adjoint = (gradient(purifier.chain(denoiser, rows(8)), x, mode) for mode in ("full", "adjoint"))
        errors.append(float((exact - adjoint).norm() / exact.norm()))
    assert errors[0] > errors[1] > errors[2] > 0.01  # near t = 0 uniform steps stay coarse, so it does not vanish


def test_weak_modes_are_what_they_say(denoiser: Denoiser, x: Tensor) -> None:
    """The image is the same in each; bpda has the identity's gradient, none has none, surrogate the shorter chain's."""
    purifier = DiffPure(steps=6)
    chain, quick = purifier.chain(denoiser, rows(8)), replace(purifier, steps=2).chain(denoiser, rows(8))
    exact = run_chain(chain, x)
    leaf = x.clone().requires_grad_()
    for mode in ("full", "autograd", "surrogate", "adjoint", "bpda", "none"):
        torch.testing.assert_close(cross(chain, leaf, mode, shorter=lambda: quick).detach(), exact)
    (grad,) = torch.autograd.grad(cross(chain, leaf, "bpda").sum(), leaf)
    assert torch.equal(grad, torch.ones_like(grad))
    assert not cross(chain, leaf, "none").requires_grad
    (mine,) = torch.autograd.grad(cross(chain, leaf, "surrogate", shorter=lambda: quick).sum(), leaf)
    (theirs,) = torch.autograd.grad(run_chain(quick, leaf).sum(), leaf)
    torch.testing.assert_close(mine, theirs)
    with pytest.raises(SpecError, match="needs a purifier with steps"):
        cross(chain, leaf, "surrogate")


def test_no_pull_is_no_guide(denoiser: Denoiser, x: Tensor) -> None:
    """With pull = 0 it is DDPM's posterior step (Ho et al. 2020, eq. 7); with some it ends nearer to the input."""
    purifier, stream = Gdmp(step=36, rounds=1, pull=0.0), child_stream(rows(8), "round 0")
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = (1 - betas).cumprod(0).tolist()
    noise = [stream.normal(SHAPE, "reverse", k).double() for k in range(36)]
    x_t = abar[35] ** 0.5 * (2 * x - 1) + (1 - abar[35]) ** 0.5 * stream.normal(SHAPE, "diffuse", 0).double()
    for k, t in enumerate(range(35, -1, -1)):
        beta, before = float(betas[t]), abar[t - 1] if t else 1.0
        x0 = denoiser(x_t / abar[t] ** 0.5, ((1 - abar[t]) / abar[t]) ** 0.5)
        mean = before**0.5 * beta / (1 - abar[t]) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - abar[t]) * x_t
        x_t = mean + ((1 - before) / (1 - abar[t]) * beta) ** 0.5 * noise[k]
    plain = run_chain(purifier.chain(denoiser, rows(8)), x)
    torch.testing.assert_close(plain, (x_t + 1) / 2)
    pulled = run_chain(replace(purifier, pull=0.5).chain(denoiser, rows(8)), x)
    assert float((pulled - x).abs().mean()) < float((plain - x).abs().mean())


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (Level("0.1"), (0.1, 0.170)),
        (Level("cifar10-l2"), (0.075, 0.128)),
        (Level("1", None, 100), (0.1, 0.169)),
        (Level("1", 0.259), (0.15, 0.259)),
    ],
)
def test_levels(typed: Level, expected: tuple[float, float]) -> None:
    """t, its name, its step and its sigma in pixels belong together as the facts have them."""
    assert typed.time == pytest.approx(expected[0], abs=6e-4)
    assert typed.generator_sigma / 2 == pytest.approx(expected[1], abs=6e-4)


def test_median_is_scipys() -> None:
    """Windows of odd size, edges mirrored."""
    image = torch.rand(1, 1, 9, 12)
    expected = ndimage.median_filter(image[0, 0].numpy(), size=3, mode="mirror")
    assert np.array_equal(median_filter(image, 3)[0, 0].numpy(), expected)


def test_total_variation_solves_its_problem() -> None:
    """The duality gap closes: |u - x|^2 / 2 + w TV(u) is least, and no neighbour of u does better."""
    x, weight = torch.rand(1, 1, 8, 7, dtype=torch.float64), 0.1
    u = run_chain(TotalVariation(weight=weight, steps=3000).chain(None, rows(1)), x)

    def energy(v: Tensor) -> float:
        down = F.pad(v.diff(dim=2), (0, 0, 0, 1))
        right = F.pad(v.diff(dim=3), (0, 1, 0, 0))
        return float((v - x).square().sum() / 2 + weight * (down.square() + right.square()).sqrt().sum())

    least = energy(u)
    assert least < energy(x)
    for seed in range(50):
        noise = torch.randn(u.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert energy(u + 0.003 * noise) > least


def test_resizing_is_interpolation_then_padding() -> None:
    """A row is what `interpolate` and `pad` make of it, zero outside."""
    x, rng = torch.rand(6, 3, 20, 26), rows(6)
    out = run_chain(ResizePad(smallest=0.6).chain(None, rng), x)
    draws = rng.uniform((3,), "resize")
    for row in range(6):
        (height, top), (width, left) = (
            (side, int(float(draws[row, place]) * (size - side + 1)))
            for size, place in ((20, 1), (26, 2))
            for least in [round(0.6 * size)]
            for side in [least + int(float(draws[row, 0]) * (size - least + 1))]
        )
        small = F.interpolate(x[row : row + 1], size=(height, width), mode="bilinear", align_corners=False)
        expected = F.pad(small, (left, 26 - width - left, top, 20 - height - top))
        torch.testing.assert_close(out[row : row + 1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_a_codec(channels: int) -> None:
    """High quality keeps a smooth image, low quality does not; the gradient is the identity's."""
    smooth = torch.linspace(0.1, 0.9, 16).expand(2, channels, 16, 16).contiguous()
    errors = [float((run_chain(Jpeg(quality=q).chain(None, rows(2)), smooth) - smooth).abs().max()) for q in (95, 5)]
    smooth.requires_grad_()
    assert errors[0] < 0.02 < errors[1]
    (grad,) = torch.autograd.grad(run_chain(Jpeg().chain(None, rows(2)), smooth).sum(), smooth)
    assert torch.equal(grad, torch.ones_like(grad))


@pytest.mark.parametrize("name", list(PURIFIERS))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_purifier_keeps_its_contract(name: str, channels: int) -> None:
    """Same shape, finite; the same streams, the same images; others only where it says so; and a gradient."""
    purifier = parse_purifier(name)
    x = torch.rand(3, channels, 12, 8, generator=torch.Generator().manual_seed(0))
    denoiser = GaussianDenoiser(torch.zeros(channels, 12, 8), 0.5) if purifier.generator else None
    out = run_chain(purifier.chain(denoiser, rows(3)), x)
    assert out.shape == x.shape
    assert bool(out.isfinite().all())
    assert torch.equal(out, run_chain(purifier.chain(denoiser, rows(3)), x))
    assert torch.equal(out, run_chain(purifier.chain(denoiser, rows(3, seed=1)), x)) != purifier.stochastic
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross(purifier.chain(denoiser, rows(3)), leaf, "full").sum(), leaf)
    assert bool((grad != 0).any())


@pytest.mark.parametrize("name", list(PURIFIERS))
def test_typed_as_described(name: str) -> None:
    """Every purifier reads what it writes, and says where it comes from and what is known of it."""
    purifier = parse_purifier(name)
    assert parse_purifier(describe(purifier)) == purifier
    told = PURIFIERS[name].__doc__ or ""
    assert "Source: " in told
    assert "Under attack: " in told


def test_nested_purifiers_are_typed_with_of_last() -> None:
    """What follows `of=` belongs to the inner one."""
    purifier = parse_purifier("repeat:rounds=4,of=diffpure:t=0.03,steps=5")
    assert purifier == Repeat(rounds=4, of=DiffPure(t="0.03", steps=5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("difpure", "did you mean 'diffpure'"),
        ("diffpure:step=0", "step must be 1 to 1000"),
        ("diffpure:t=2", r"t must be in \(0, 1\]"),
        ("diffpure:t=cifar10", "did you mean 'cifar10-"),
        ("diffpure:sigma=0.1,step=3", "sigma or step, not both"),
        ("diffpure:stpes=3", "did you mean 'steps'"),
        ("diffpure:steps=three", "steps must be an integer, got 'three'"),
        ("diffpure:steps", "expected setting=value"),
        ("diffpure:reverse=forward", "one of sde, ancestral"),
        ("jpeg:quality=0", "quality must be 1 to 100"),
        ("median:size=1", "size must be >= 2"),
        ("gdmp:pull=1", r"pull must be in \[0, 1\)"),
        ("repeat:rounds=0", "rounds must be >= 1"),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    """In a sentence that names the setting."""
    with pytest.raises(SpecError, match=message):
        parse_purifier(text)


def test_feature_squeezing_flags_at_its_rate_and_is_bypassed() -> None:
    """Of fresh clean images about as many are flagged as asked; an attack that knows of it wins more often."""
    model, threat = load_classifier("fmnist-standard"), ThreatModel("linf", 0.1)
    dataset = load_data("fmnist-test-1k")
    clean, _ = dataset.batch(range(500, 1000))
    detector = calibrate(model, clean, 0.05)
    assert float(detector.flags(clean).float().mean()) == pytest.approx(0.05, abs=0.004)
    x, y = dataset.batch(range(120))
    assert float(detector.flags(x).float().mean()) < 0.15
    x, y = x[model(x).argmax(1) == y][:40], y[model(x).argmax(1) == y][:40]
    blind = robustgen.attack(model, x, y, threat, "pgd:steps=20")
    caught = float((~detector.beaten(blind, y)).float().mean())
    adversarial, won = bypass(detector, x, y, threat, steps=30)
    assert bool((detector.beaten(adversarial, y) == won).all())
    assert bool(threat.contains(x, adversarial).all())
    assert float((~won).float().mean()) < caught - 0.1
    with pytest.raises(SpecError, match="needs 20 clean images or more, got 5"):
        calibrate(model, clean[:5])
