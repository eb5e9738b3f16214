"""TRADES: trade accuracy on clean images against smoothness around them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.fields import NOT_NEGATIVE, check_value
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from robustgen.training.inner import ascend, check_attack, kl_to, start_near
from robustgen.training.method import Attacked, register_method

__all__ = ["Trades"]


@register_method("trades")
@dataclass(frozen=True, slots=True, kw_only=True)
class Trades:
    """CE(f(x), y) + beta KL(p(x) || p(x')), x' from steps up the same KL divergence with p(x) fixed.

    The gradient goes through both sides of the KL. The clean forward pass serves the attack and the loss.

    Source: Zhang et al. 2019, arXiv:1901.08573, eq. (5) and algorithm 1; settings of Wang et al. 2023,
    arXiv:2302.04638: beta 5, a uniform start for Linf, 0.001 N(0, I) for L2 and L1, 10 steps of eps / 4 (2 / 255 at
    8 / 255; L2: eps / 5).
    """

    threat: ThreatModel
    label_smoothing: float = 0.0
    beta: float = 5.0
    steps: int = 10
    rel_step: float | None = None  # step length as a fraction of eps; None for 1 / 4 in Linf, else 1 / 5
    guarded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_attack("trades", self.threat, self.steps, 1.0 if self.rel_step is None else self.rel_step)
        check_value("training.beta", self.beta, NOT_NEGATIVE)

    @property
    def step_length(self) -> float:
        """As a fraction of eps."""
        if self.rel_step is not None:
            return self.rel_step
        return 0.25 if self.threat.norm == "linf" else 0.2

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        clean = model(x)
        uniform = self.threat.norm == "linf"
        start = self.threat.random_start(x, rng, "training") if uniform else start_near(x, self.threat, rng)
        towards = kl_to(clean.softmax(1))
        return Attacked(
            ascend(model, towards, x, start, self.threat, steps=self.steps, rel_step=self.step_length), clean
        )

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        clean = model(x) if attacked.clean is None else attacked.clean
        natural = F.cross_entropy(clean, y, label_smoothing=self.label_smoothing)
        log_p, log_p_adv = clean.log_softmax(1), model(attacked.x).log_softmax(1)
        robust = F.kl_div(log_p_adv, log_p, reduction="batchmean", log_target=True)
        return natural + self.beta * robust

    def stronger(self) -> Self:
        return replace(self, steps=self.steps + 1)
