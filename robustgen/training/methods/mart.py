"""MART: adversarial training that weighs examples by how badly they are classified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.fields import NOT_NEGATIVE, check_value
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from robustgen.training.inner import ascend, check_attack, cross_entropy_to, probabilities, start_near
from robustgen.training.method import Attacked, register_method

__all__ = ["Mart"]

_MARGIN = 1.0001  # so that log(1.0001 - p) is finite at p = 1, as in the authors' code


@register_method("mart")
@dataclass(frozen=True, slots=True, kw_only=True)
class Mart:
    """CE(x') - log(1.0001 - max wrong p(x')) + beta mean[KL(p(x) || p(x')) (1 - p_y(x))].

    The attack climbs the cross-entropy from x + 0.001 N(0, I).

    Source: Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified examples", eq. (8) to
    (11).
    Differs: the attack sees batch norm in training mode with its running statistics frozen, as all methods here do,
    where the authors use evaluation mode.
    """

    threat: ThreatModel
    label_smoothing: float = 0.0
    beta: float = 6.0
    steps: int = 10
    rel_step: float = 0.25  # step length as a fraction of eps
    guarded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_attack("mart", self.threat, self.steps, self.rel_step)
        check_value("training.beta", self.beta, NOT_NEGATIVE)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        start = start_near(x, self.threat, rng)
        return Attacked(
            ascend(model, cross_entropy_to(y), x, start, self.threat, steps=self.steps, rel_step=self.rel_step)
        )

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        adversarial = model(attacked.x)
        log_p, log_p_adv = model(x).log_softmax(1), adversarial.log_softmax(1)
        right = probabilities(y, adversarial.shape[1])
        wrong = torch.where(right == right.amax(1, keepdim=True), -torch.inf, log_p_adv).amax(1).exp()
        boosted = F.cross_entropy(adversarial, y, label_smoothing=self.label_smoothing) - (_MARGIN - wrong).log().mean()
        divergence = F.kl_div(log_p_adv, log_p, reduction="none", log_target=True).sum(1)
        doubt = 1 - (right * log_p.exp()).sum(1)
        loss: Tensor = boosted + self.beta * (divergence * doubt).mean()
        return loss

    def stronger(self) -> Self:
        return replace(self, steps=self.steps + 1)
