"""Methods made for noise: what they see, what they minimise, and on what they are measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from robustgen.training.method import Method, make_method
from robustgen.training.methods.noise import Consistency, Gaussian, SmoothAdversarial, noised
from tests.helpers import make_convnet, make_images
from tests.training_helpers import Shrinking


def _loss(method: Method, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Tensor:
    """Of one step: attack, then loss."""
    return method.loss(model, x, y, method.attack(model, x, y, rng))


def noise_rows(n: int) -> ExampleRng:
    """Streams for n images."""
    return ExampleRng.of(0, torch.arange(n))


def test_gaussian_training_sees_noise_of_its_sigma() -> None:
    """Cross-entropy at x + sigma z, not clipped; the same streams, the same noise."""
    model = make_convnet()
    x, y = make_images(model)
    attacked = Gaussian(sigma=0.5).attack(model, x, y, noise_rows(len(x)))
    noise = (attacked.x - x) / 0.5
    assert float(noise.std()) == pytest.approx(1.0, abs=0.05)
    assert float(attacked.x.min()) < 0
    expected = nn.functional.cross_entropy(model(attacked.x), y)
    assert torch.allclose(_loss(Gaussian(sigma=0.5), model, x, y, noise_rows(len(x))), expected)


def test_denoised_training_sees_what_the_denoiser_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """x + sigma z in [-1, 1], halved by this denoiser, back in [0, 1] and clipped; measured on the same."""
    model = make_convnet()
    x, y = make_images(model)
    denoiser = Shrinking(tuple(x.shape[1:]))
    monkeypatch.setattr("robustgen.training.methods.denoised._denoiser", lambda name, device: denoiser)
    method = make_method("denoised", threat=None, label_smoothing=0.0, options={"sigma": 0.5})
    noise = Gaussian(sigma=0.5).attack(model, x, y, noise_rows(len(x))).x
    expected = (0.5 * (2 * noise - 1) + 1).div(2).clamp(0, 1)
    assert torch.allclose(method.attack(model, x, y, noise_rows(len(x))).x, expected, atol=1e-6)
    with pytest.raises(SpecError, match=r"training\.generator"):
        method.attack(model, torch.rand(2, 1, 9, 8), y, noise_rows(2))


def test_consistency_is_its_three_terms() -> None:
    """Cross-entropy alone without weights; a network that ignores its input has no divergence, and a known entropy."""
    model = make_convnet()
    x, y = make_images(model)
    rng = noise_rows(len(x))
    both = noised(x, 0.25, 2, rng)
    plain = Consistency(sigma=0.25, weight=0.0, entropy=0.0)
    expected = nn.functional.cross_entropy(model(both), torch.cat([y, y]))
    assert torch.allclose(_loss(plain, model, x, y, rng), expected)
    p = model(both).softmax(1).reshape(2, len(x), -1)
    mean = p.mean(0)
    apart = (mean * (mean.log() - p.log())).sum(2).mean()
    entropy = -(mean * mean.log()).sum(1).mean()
    whole = _loss(Consistency(sigma=0.25, weight=3.0, entropy=0.7), model, x, y, rng)
    assert torch.allclose(whole, expected + 3 * apart + 0.7 * entropy, rtol=1e-4)
    mixed = nn.functional.one_hot(y, model(x).shape[1]).float()
    assert torch.allclose(_loss(plain, model, x, mixed, rng), expected)


def test_smoothadv_attacks_the_smoothed_network() -> None:
    """Inside the ball, with one noise throughout, and with a higher loss of the mean probability than at the image."""
    network = make_convnet()
    x, y = make_images(network)
    threat = ThreatModel.parse("l2:0.5")
    method = SmoothAdversarial(threat=threat, sigma=0.1, draws=4, steps=4)
    attacked = method.attack(network, x, y, noise_rows(len(x)))
    noise = noised(torch.zeros_like(x), 0.1, 4, noise_rows(len(x)))
    points = (attacked.x - noise).reshape(4, *x.shape)
    assert torch.allclose(points, points[:1].expand_as(points), atol=1e-6)
    assert bool(threat.contains(x, points[0].clamp(0, 1)).all())

    def smoothed(at: Tensor) -> float:
        p = network(at.repeat(4, 1, 1, 1) + noise).softmax(1).reshape(4, len(x), -1).mean(0)
        return float(nn.functional.nll_loss(p.log(), y))

    with torch.no_grad():
        assert smoothed(points[0]) > smoothed(x)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaussian", {"sigma": 0}, "training.sigma must be a number above 0"),
        ("consistency", {"draws": 1}, "training.draws must be a number >= 2"),
        ("smoothadv", {}, "needs a threat model"),
    ],
)
def test_impossible_noise(name: str, options: dict[str, Any], message: str) -> None:
    """Refused with the field."""
    with pytest.raises(SpecError, match=message):
        make_method(name, threat=None, label_smoothing=0.0, options=options)
