"""The attack inside a training step: steps of steepest ascent on some loss, cheap because nothing else is computed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustgen.errors import SpecError
from robustgen.fields import POSITIVE, WHOLE, check_value
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

__all__ = [
    "ascend",
    "check_attack",
    "cross_entropy_to",
    "frozen_parameters",
    "frozen_statistics",
    "kl_to",
    "probabilities",
    "start_near",
]

_NEAR = 0.001  # standard deviation of the start of TRADES and MART, in units of [0, 1]


def check_attack(name: str, threat: ThreatModel | None, steps: int, rel_step: float) -> None:
    """Refuse what no adversarial training can do with.

    Raises:
        SpecError: no threat model, or steps and step length that are none.
    """
    if threat is None:
        raise SpecError(f"training.threat: method '{name}' needs a threat model, such as threat = \"linf:8/255\".")
    check_value("training.steps", steps, WHOLE)
    check_value("training.rel_step", rel_step, POSITIVE)


def ascend(
    model: nn.Module,
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    x_adv: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    rel_step: float,
) -> Tensor:
    """`steps` steps of steepest ascent, projected after each; parameters and running statistics stay as they are.

    Args:
        model: in training mode; batch norm uses the statistics of the batch.
        objective: logits (B, K) -> (B,) or a scalar sum; row i must depend on logits i alone.
        x, x_adv: (B, C, H, W) in [0, 1], the centre of the ball and where to start.
        threat: the ball.
        steps: of the ascent.
        rel_step: their length as a fraction of eps.
    """
    with frozen_parameters(model), frozen_statistics(model):
        for _ in range(steps):
            with torch.enable_grad():
                leaf = x_adv.detach().requires_grad_()
                (grad,) = torch.autograd.grad(objective(model(leaf)).sum(), leaf)
            x_adv = threat.project(x, leaf.detach() + rel_step * threat.eps * threat.steepest(grad))
    return x_adv.detach()


def start_near(x: Tensor, threat: ThreatModel, rng: ExampleRng) -> Tensor:
    """x + 0.001 N(0, I), projected: where TRADES and MART begin, because their loss has no gradient at x itself."""
    return threat.project(x, x + _NEAR * rng.normal(x.shape[1:], "training-near", device=x.device))


def cross_entropy_to(y: Tensor) -> Callable[[Tensor], Tensor]:
    """The objective CE(logits, y), a row each, for labels (B,) or probabilities (B, K)."""
    return lambda logits: F.cross_entropy(logits, y, reduction="none")


def kl_to(p: Tensor) -> Callable[[Tensor], Tensor]:
    """The objective KL(p || softmax(logits)), a row each, for fixed p (B, K)."""
    p = p.detach()

    def objective(logits: Tensor) -> Tensor:
        return F.kl_div(logits.log_softmax(1), p, reduction="none").sum(1)

    return objective


def probabilities(y: Tensor, classes: int) -> Tensor:
    """Labels (B,) as one-hot rows (B, K); rows of probabilities as they are."""
    return y if y.ndim == 2 else F.one_hot(y, classes).float()


@contextlib.contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """No gradients for parameters: an attack needs them for the images only."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm in training mode uses the batch's statistics, but does not add them to the running ones."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    before = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in zip(norms, before, strict=True):
            module.momentum = momentum
