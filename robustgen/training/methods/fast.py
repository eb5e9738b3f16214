"""Adversarial training with one step: FGSM-RS, N-FGSM, and GradAlign's remedy for its collapse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.fields import NOT_NEGATIVE, check_value
from robustgen.rng import ExampleRng
from robustgen.training.inner import ascend, check_attack, cross_entropy_to, frozen_statistics
from robustgen.training.method import Attacked, register_method
from robustgen.training.methods.pgd_at import PgdAdversarial

__all__ = ["FastAdversarial", "GradAlign", "NoisyFast"]


@register_method("fgsm-rs")
@dataclass(frozen=True, slots=True, kw_only=True)
class FastAdversarial(PgdAdversarial):
    """One step of 1.25 eps from a uniform start: as cheap as two standard trainings; guarded against its collapse.

    It may learn to defeat one-step attacks only ("catastrophic overfitting"). After a collapse the attack takes more
    steps, of 1.25 eps / steps each.

    Source: Wong, Rice & Kolter 2020, arXiv:2001.03994, algorithm 3 and section 5.
    Differs: the start is clipped to [0, 1].
    """

    steps: int = 1
    rel_step: float = 1.25
    guarded: ClassVar[bool] = True

    def stronger(self) -> Self:
        steps = self.steps + 1
        return replace(self, steps=steps, rel_step=self.rel_step * self.steps / steps)


@register_method("gradalign")
@dataclass(frozen=True, slots=True, kw_only=True)
class GradAlign(FastAdversarial):
    """FGSM-RS, and a penalty where the gradient at x and at a random point near it point apart.

    loss + penalty (1 - mean cos(grad at x, grad at x + U(-eps, eps))), differentiated twice.

    Source: Andriushchenko & Flammarion 2020, arXiv:2007.02617, eq. (5); penalty 0.2 for Linf 8 / 255 on CIFAR-10.
    """

    penalty: float = 0.2

    def __post_init__(self) -> None:
        check_attack("gradalign", self.threat, self.steps, self.rel_step)
        check_value("training.penalty", self.penalty, NOT_NEGATIVE)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        found = super(GradAlign, self).attack(model, x, y, rng)
        return replace(found, near=self.threat.random_start(x, rng, "training-align"))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        plain = super(GradAlign, self).loss(model, x, y, attacked)
        assert attacked.near is not None  # of this method's own attack
        with frozen_statistics(model):
            here, there = (_input_gradient(model, z, y) for z in (x, attacked.near))
        cosine = F.cosine_similarity(here.flatten(1), there.flatten(1), dim=1)
        return plain + self.penalty * (1 - cosine.mean())


@register_method("n-fgsm")
@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyFast(PgdAdversarial):
    """One step of eps from x + U(-2 eps, 2 eps), not projected to eps after: seldom collapses, guarded all the same.

    Source: de Jorge et al. 2022, arXiv:2202.01181, algorithm 1 (k = 2, alpha = eps), Linf.
    Differs: for L2 and L1 the start is `noise` times as far out as a random point of the ball; the step is that norm's.
    """

    noise: float = 2.0  # of the start, as a multiple of eps
    rel_step: float = 1.0
    steps: int = 1
    guarded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_attack("n-fgsm", self.threat, self.steps, self.rel_step)
        check_value("training.noise", self.noise, NOT_NEGATIVE)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        wide = self.threat.scaled(self.noise + self.rel_step)  # nothing is cut off but at 0 and 1
        start = self.threat.scaled(self.noise).random_start(x, rng, "training") if self.noise else x
        length = self.rel_step / (self.noise + self.rel_step) / self.steps
        return Attacked(ascend(model, cross_entropy_to(y), x, start, wide, steps=self.steps, rel_step=length))


def _input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the cross-entropy at x, itself differentiable for the parameters."""
    leaf = x.detach().requires_grad_()
    loss = F.cross_entropy(model(leaf), y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    return grad
