"""Adversarial weight perturbation: the loss is taken where the weights, too, have moved to make it worse."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from robustgen.training.inner import frozen_statistics

__all__ = ["adversarial_weights"]

_TINY = 1e-12


@contextlib.contextmanager
def adversarial_weights(model: nn.Module, loss: Callable[[], Tensor], size: float) -> Iterator[None]:
    """Inside, every weight w of two or more dimensions is w + size ||w|| g / ||g||, g the gradient of the loss for w.

    Afterwards the weights are, bit for bit, what they were; gradients made inside are those at the moved weights.

    Args:
        model: in training mode; its running statistics see nothing of the first pass.
        loss: of the attacked batch, to be evaluated once.
        size: length of the perturbation relative to that of the weight, 0.005 in the paper.

    Source: Wu, Xia & Wang 2020, arXiv:2004.05884, eq. (7) to (10) with one step.
    Differs: the gradient is that of the whole loss at the weights themselves, without a proxy optimizer.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim > 1]
    with frozen_statistics(model):
        gradients = torch.autograd.grad(loss(), weights)
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.add_(gradient * (size * weight.norm() / (gradient.norm() + _TINY)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
