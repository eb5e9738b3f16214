"""Training for randomized smoothing: on noised images, with draws that agree, or against the smoothed network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.fields import NOT_NEGATIVE, POSITIVE, WHOLE, check_value
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from robustgen.training.inner import check_attack, frozen_parameters, frozen_statistics
from robustgen.training.method import Attacked, register_method

__all__ = ["Consistency", "Gaussian", "MeasuredUnderNoise", "SmoothAdversarial", "noised"]


def noised(x: Tensor, sigma: float, draws: int, rng: ExampleRng) -> Tensor:
    """(draws * B, C, H, W): each image with `draws` normal noises of its own, draw after draw; not clipped."""
    noise = [rng.normal(x.shape[1:], f"training-noise-{k}", device=x.device) for k in range(draws)]
    return torch.cat([x + sigma * one for one in noise])


class MeasuredUnderNoise:
    """For methods made for noise: what counts is what the network says under it, the same noise each time."""

    __slots__ = ()
    sigma: float

    def measured_on(self, x: Tensor, rng: ExampleRng) -> Tensor:
        """Images (B, C, H, W) as accuracy on held-out ones is measured."""
        return noised(x, self.sigma, 1, rng)


@register_method("gaussian")
@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussian(MeasuredUnderNoise):
    """Cross-entropy on images with normal noise: what randomized smoothing asks of its base classifier.

    Source: Cohen et al. 2019, arXiv:1902.02918, section 3.3.

    Args:
        sigma: of the noise, in pixels of [0, 1].
    """

    threat: ThreatModel | None = None
    label_smoothing: float = 0.0
    sigma: float = 0.25
    guarded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_value("training.sigma", self.sigma, POSITIVE)

    @property
    def steps(self) -> int:
        return 0

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        return Attacked(noised(x, self.sigma, 1, rng))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        return F.cross_entropy(model(attacked.x), y, label_smoothing=self.label_smoothing)

    def stronger(self) -> Self:
        return self


@register_method("consistency")
@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency(MeasuredUnderNoise):
    """Cross-entropy on noised images, plus how far single draws are from their mean, plus the entropy of the mean.

    mean_i CE(p_i, y) + weight mean_i KL(p || p_i) + entropy H(p), with p = mean_i p_i over `draws` noises.

    Source: Jeong & Shin 2020, arXiv:2006.04062, eq. (6) and (7); lambda = 10 and eta = 0.5 at two draws.

    Args:
        sigma: of the noise, in pixels of [0, 1].
        draws: noises an image.
        weight: lambda.
        entropy: eta.
    """

    threat: ThreatModel | None = None
    label_smoothing: float = 0.0
    sigma: float = 0.25
    draws: int = 2
    weight: float = 10.0
    entropy: float = 0.5
    guarded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_value("training.sigma", self.sigma, POSITIVE)
        check_value("training.draws", self.draws, (lambda value: WHOLE[0](value) and value >= 2, "a number >= 2"))
        check_value("training.weight", self.weight, NOT_NEGATIVE)
        check_value("training.entropy", self.entropy, NOT_NEGATIVE)

    @property
    def steps(self) -> int:
        return 0

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        return Attacked(noised(x, self.sigma, self.draws, rng))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        logits = model(attacked.x)
        labels = y.repeat(self.draws, *[1] * (y.ndim - 1))
        natural = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        log_p = logits.log_softmax(1).unflatten(0, (self.draws, -1))
        mean = log_p.exp().mean(0).clamp(min=1e-8)
        apart = (mean * (mean.log() - log_p)).sum(2).mean()
        spread = -(mean * mean.log()).sum(1).mean()
        total: Tensor = natural + self.weight * apart + self.entropy * spread
        return total

    def stronger(self) -> Self:
        return self


@register_method("smoothadv")
@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothAdversarial(MeasuredUnderNoise):
    """Cross-entropy on noised images around the point that is worst for the smoothed network.

    The attack ascends -log of the mean probability of the label over `draws` noises, the same in every step; the loss
    is taken at the point it finds, with the same noises.

    Source: Salman et al. 2019, arXiv:1906.04584, eq. (5) and (S), algorithm 1 (SmoothAdv-PGD).

    Args:
        sigma: of the noise, in pixels of [0, 1].
        draws: noises an image.
        steps, rel_step: of the attack, the step as a fraction of eps.
    """

    threat: ThreatModel
    label_smoothing: float = 0.0
    sigma: float = 0.25
    draws: int = 2
    steps: int = 2
    rel_step: float = 0.5
    guarded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_attack("smoothadv", self.threat, self.steps, self.rel_step)
        check_value("training.sigma", self.sigma, POSITIVE)
        check_value("training.draws", self.draws, WHOLE)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        noise = noised(torch.zeros_like(x), self.sigma, self.draws, rng)
        x_adv = x
        with frozen_parameters(model), frozen_statistics(model):
            for _ in range(self.steps):
                with torch.enable_grad():
                    leaf = x_adv.detach().requires_grad_()
                    logits = model(leaf.repeat(self.draws, 1, 1, 1) + noise)
                    (grad,) = torch.autograd.grad(self._smoothed_loss(logits, y).sum(), leaf)
                moved = leaf.detach() + self.rel_step * self.threat.eps * self.threat.steepest(grad)
                x_adv = self.threat.project(x, moved)
        return Attacked(x_adv.detach().repeat(self.draws, 1, 1, 1) + noise)

    def _smoothed_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B,) -log of the mean probability of the label, or of the labels where they are mixed."""
        mean = logits.log_softmax(1).unflatten(0, (self.draws, -1)).logsumexp(0)
        return F.nll_loss(mean, y, reduction="none") if y.ndim == 1 else -(y * mean).sum(1)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        labels = y.repeat(self.draws, *[1] * (y.ndim - 1))
        return F.cross_entropy(model(attacked.x), labels, label_smoothing=self.label_smoothing)

    def stronger(self) -> Self:
        return replace(self, steps=self.steps + 1)
