"""Tests of the one interface to every generator."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch

from robustgen.errors import ArtifactError, SpecError
from robustgen.generator.analytic import GaussianDenoiser, MixtureDenoiser
from robustgen.generator.denoiser import (
    Denoiser,
    DenoiserWarning,
    Guided,
    generator_sigma,
    to_generator_range,
    to_pixel_range,
    to_uint8,
)
from robustgen.generator.load import load_generator
from robustgen.generator.network_denoiser import DdpmDenoiser
from robustgen.generator.views import linear_schedule
from tests.generator_helpers import TinyNetwork, make_ddpm, make_edm

X = torch.zeros(2, 1, 4, 4)


def test_ranges_round_trip() -> None:
    """[0, 1] to [-1, 1] and back, and a sigma in pixels doubles."""
    x = torch.rand(2, 1, 3, 3)
    torch.testing.assert_close(to_pixel_range(to_generator_range(x)), x)
    assert generator_sigma(0.25) == 0.5


def test_every_grey_level_survives_the_round_trip_to_uint8() -> None:
    """uint8 -> [-1, 1] -> uint8 is the identity on all 256 levels, and beyond the range it clips."""
    levels = torch.arange(256, dtype=torch.uint8)
    x = (levels.float() / 127.5 - 1).reshape(256, 1, 1, 1)
    assert torch.equal(to_uint8(x).flatten(), levels)
    assert to_uint8(torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1)).flatten().tolist() == [0, 255]


def test_gaussian_is_the_posterior_mean() -> None:
    """Against the mean of clean images given noisy ones in a bin, by simulation."""
    rng = torch.Generator().manual_seed(0)
    clean = 0.2 + 0.5 * torch.randn(400_000, generator=rng)
    noisy = clean + 0.7 * torch.randn(400_000, generator=rng)
    near = (noisy - 0.9).abs() < 0.02
    x = torch.full((1, 1, 1, 1), 0.9)
    assert float(GaussianDenoiser(torch.full((1, 1, 1), 0.2), 0.5)(x, 0.7)) == pytest.approx(
        float(clean[near].mean()), abs=0.02
    )


def test_mixture_gradient_is_the_posterior_covariance() -> None:
    """dD/dx = Cov(y | x) / sigma^2, symmetric and positive, in float64."""
    points = torch.rand(5, 1, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    denoiser, x, sigma = MixtureDenoiser(points), torch.full((1, 1, 1, 3), 0.4, dtype=torch.float64), 0.3
    jacobian = torch.autograd.functional.jacobian(lambda z: denoiser(z, sigma).flatten(), x).reshape(3, 3)
    flat = points.reshape(5, 3)
    weights = torch.softmax(-(flat - 0.4).square().sum(1) / (2 * sigma**2), 0)
    centred = flat - weights @ flat
    torch.testing.assert_close(jacobian, (centred.T * weights) @ centred / sigma**2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("denoiser", [make_edm(), make_ddpm(classes=3), GaussianDenoiser(torch.zeros(1, 4, 4), 0.5, 3)])
def test_denoisers_differentiate(denoiser: Denoiser) -> None:
    """gradcheck in float64 through every kind of denoiser, one sigma a row."""
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    sigma, label = torch.tensor([0.3, 0.8], dtype=torch.float64), torch.tensor([0, 2])
    assert torch.autograd.gradcheck(lambda z: denoiser(z, sigma, label), (x,))


def test_edm_and_ddpm_views_of_one_network_agree() -> None:
    """An eps network wrapped as DDPM gives D = x - sigma eps at its own x_t, whatever the batch."""
    denoiser = make_ddpm(steps=60)
    sigma = denoiser.schedule.sigmas[[5, 40]]
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    together = denoiser(x, sigma)
    for row, t in enumerate((5, 40)):
        abar = denoiser.schedule.alphas_cumprod[t]
        eps = denoiser.network(abar.sqrt() * x[row : row + 1], torch.tensor([t]), None)
        torch.testing.assert_close(together[row : row + 1], x[row : row + 1] - sigma[row] * eps, rtol=0, atol=1e-12)


def test_v_prediction_and_sample_prediction() -> None:
    """A v network and an image network that say the same as an eps network give the same D."""
    eps_denoiser, schedule = make_ddpm(steps=60), linear_schedule(60)

    class Other(TinyNetwork):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
            eps = eps_denoiser.network(x, t, label)
            abar = schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
            x0 = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
            return x0 if self.kind == "sample" else abar.sqrt() * eps - (1 - abar).sqrt() * x0

    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    sigma = schedule.sigmas[[0, 30, 59]]
    for kind in ("v_prediction", "sample"):
        with torch.random.fork_rng(devices=[]):
            other = DdpmDenoiser(Other(kind), (1, 4, 4), 0, schedule=schedule, prediction=kind)  # type: ignore[arg-type]
        torch.testing.assert_close(other(x, sigma), eps_denoiser(x, sigma), rtol=0, atol=1e-10)


def test_guidance_is_the_published_combination() -> None:
    """D_w = free + w (bound - free), and w = 1 is the plain denoiser."""
    denoiser, x = make_edm(), torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(5)).double()
    label = torch.tensor([0, 1, 2])
    free, bound = denoiser(x, 0.5), denoiser(x, 0.5, label)
    assert float((free - bound).abs().max()) > 1e-3
    torch.testing.assert_close(Guided(denoiser, 3.0)(x, 0.5, label), free + 3 * (bound - free))
    torch.testing.assert_close(Guided(denoiser, 1.0)(x, 0.5, label), bound)
    torch.testing.assert_close(Guided(denoiser, 3.0)(x, 0.5), free)


def test_a_missing_class_is_no_class() -> None:
    """-1 and None mean the same, row by row."""
    denoiser, x = make_edm(), torch.ones(2, 1, 4, 4).double()
    mixed = denoiser(x, 0.5, torch.tensor([-1, 1]))
    torch.testing.assert_close(mixed[:1], denoiser(x[:1], 0.5))
    torch.testing.assert_close(mixed[1:], denoiser(x[1:], 0.5, 1))


@pytest.mark.parametrize(
    ("x", "sigma", "label", "message"),
    [
        (torch.zeros(2, 3, 4, 4), 0.5, None, r"makes images \(1, 4, 4\)"),
        (torch.zeros(2, 1, 5, 4), 0.5, None, "makes images"),
        (torch.zeros(1, 4, 4), 0.5, None, "makes images"),
        (X, 0.0, None, "above 0"),
        (X, -1.0, None, "above 0"),
        (X, math.nan, None, "above 0"),
        (X, math.inf, None, "above 0 and finite"),
        (X, torch.ones(3), None, r"one a row \(2,\)"),
        (X, 0.5, 3, "classes 0 to 2"),
        (X, 0.5, torch.tensor([0, -2]), "class -2"),
        (X, 0.5, torch.zeros(3, dtype=torch.long), "one a row"),
        (X, 0.5, torch.zeros(2), "whole numbers"),
    ],
)
def test_bad_arguments_are_refused(x: torch.Tensor, sigma: float, label: int | None, message: str) -> None:
    """Shape, sigma and class, each in one sentence."""
    with pytest.raises(SpecError, match=message):
        make_edm()(x, sigma, label)


def test_classes_are_refused_where_there_are_none() -> None:
    """An unconditional generator says so, and cannot be guided."""
    with pytest.raises(SpecError, match="knows no classes"):
        make_ddpm()(X.double(), 0.5, 0)
    with pytest.raises(SpecError, match="guidance needs"):
        Guided(make_ddpm(), 2.0)


def test_a_sigma_outside_the_trained_range_warns_once() -> None:
    """The warning names both, and does not repeat."""
    denoiser = make_edm()
    with pytest.warns(DenoiserWarning, match=r"sigma 200 is outside 0.002 .. 80"):
        denoiser(X.double(), 200.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoiser(X.double(), 300.0)


def _save_pipeline(folder: Path, **config: object) -> Path:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            **config,  # type: ignore[arg-type]
        )
    DDPMPipeline(
        unet, DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    ).save_pretrained(folder)
    return folder


def test_a_diffusers_folder_is_a_denoiser(tmp_path: Path) -> None:
    """A pipeline saved by diffusers is loaded with its schedule and its prediction, and agrees with its own x0."""
    from diffusers import DDPMPipeline

    folder = _save_pipeline(tmp_path / "pipe")
    denoiser = load_generator(f"diffusers:{folder}", precision="float32").denoiser
    assert isinstance(denoiser, DdpmDenoiser)
    pipeline = DDPMPipeline.from_pretrained(folder)
    x0 = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    t, noise = torch.tensor([400]), torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    x_t = pipeline.scheduler.add_noise(x0, noise, t)
    with torch.no_grad():
        out = pipeline.unet(x_t, t).sample
        theirs = pipeline.scheduler.step(out, 400, x_t).pred_original_sample.clamp(-1, 1)
        abar = pipeline.scheduler.alphas_cumprod[400]
        ours = denoiser(x_t / abar.sqrt(), float(((1 - abar) / abar).sqrt())).clamp(-1, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_class_conditional_diffusers_folder_wants_a_class(tmp_path: Path) -> None:
    """It has no null class, so that leaving the class out is an error in words."""
    folder = _save_pipeline(tmp_path / "pipe", num_class_embeds=4)
    denoiser = load_generator(f"diffusers:{folder}", precision="float32").denoiser
    assert denoiser.classes == 4
    assert denoiser(torch.zeros(2, 3, 8, 8), 1.0, torch.tensor([0, 3])).shape == (2, 3, 8, 8)
    with pytest.raises(SpecError, match="give a class for every image"):
        denoiser(torch.zeros(1, 3, 8, 8), 1.0)


def test_damaged_diffusers_folders_are_refused(tmp_path: Path) -> None:
    """Missing folder, missing file, pickled weights, another network: a sentence each."""
    with pytest.raises(ArtifactError, match="no such folder"):
        load_generator(f"diffusers:{tmp_path / 'none'}")
    folder = _save_pipeline(tmp_path / "pipe")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_generator(f"diffusers:{folder}")
    weights.rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ArtifactError, match="safe_serialization=True"):
        load_generator(f"diffusers:{folder}")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({"_class_name": "UNet2DConditionModel"}), encoding="utf-8")
    with pytest.raises(SpecError, match="UNet2DConditionModel"):
        load_generator(f"diffusers:{folder}")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ArtifactError, match=r"scheduler_config.json: there is no such file"):
        load_generator(f"diffusers:{folder}")


def test_unknown_generators_are_refused(tmp_path: Path) -> None:
    """A name nobody knows, a card that is not there, a classifier's card, an impossible precision."""
    with pytest.raises(SpecError, match="unknown generator 'nothing'"):
        load_generator("nothing")
    with pytest.raises(ArtifactError, match="no such file"):
        load_generator(str(tmp_path / "card.json"))
    (tmp_path / "card.json").write_text('{"architecture": "small-resnet"}', encoding="utf-8")
    with pytest.raises(SpecError, match="card of a classifier"):
        load_generator(str(tmp_path / "card.json"))
    with pytest.raises(SpecError, match="--precision must be"):
        load_generator("nothing", precision="float16")
