"""What training measures of a network: accuracy, clean and attacked, and the guard of one-step attacks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from robustgen.training.inner import ascend, cross_entropy_to, frozen_parameters

__all__ = ["clean_accuracy", "fgsm_accuracy", "has_collapsed", "measuring", "pgd_accuracy"]

_MEASURE_ROWS = 256  # images in one forward pass when accuracy is measured


def has_collapsed(fgsm: float, pgd: float, best_fgsm: float, best_pgd: float, classes: int) -> bool:
    """Catastrophic overfitting: PGD accuracy fell below half of its best, while FGSM accuracy did not.

    Args:
        fgsm, pgd: accuracies now, in [0, 1].
        best_fgsm, best_pgd: the best so far.
        classes: a best PGD accuracy below chance plus 0.1 is no height to fall from.
    """
    learned = best_pgd >= 1 / classes + 0.1
    return learned and pgd < best_pgd / 2 and fgsm >= best_fgsm / 2


def clean_accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of x (N, C, H, W) classified as y (N,), by a model in eval mode."""
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in _parts(x, y))
    return right / len(x)


def fgsm_accuracy(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> float:
    """Accuracy after one step of 1.25 eps from a random start (the attack of fast adversarial training)."""
    right = 0
    ids = torch.arange(len(x))
    for rows in ids.split(_MEASURE_ROWS):
        a, b = x[rows], y[rows]
        start = threat.random_start(a, ExampleRng.of(0, rows), "fgsm-accuracy")
        x_adv = ascend(model, cross_entropy_to(b), a, start, threat, steps=1, rel_step=1.25)
        with torch.no_grad():
            logits = model(x_adv)
        right += int((logits.argmax(1) == b).sum())
    return right / len(x)


def pgd_accuracy(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, steps: int = 20, rel_step: float = 0.2
) -> float:
    """Accuracy under PGD on the margin loss, started at the images; every iterate counts.

    Args:
        model: in eval mode, parameters frozen.
        x: (N, C, H, W) in [0, 1].
        y: (N,) int64.
        threat: the threat model.
        steps: gradient steps.
        rel_step: step length as a fraction of eps.
    """
    right = 0
    for a, b in _parts(x, y):
        a_adv = a
        for step in range(steps + 1):
            leaf = a_adv.detach().requires_grad_(step < steps)
            with torch.set_grad_enabled(step < steps):
                margin = _margin(model(leaf), b)
            alive = margin > 0
            if step < steps:
                (grad,) = torch.autograd.grad(-margin.sum(), leaf)
                moved = leaf.detach() + rel_step * threat.eps * threat.steepest(grad)
                a_adv = threat.project(a, moved)[alive]
            a, b = a[alive], b[alive]
            if not len(a):
                break
        right += len(a)
    return right / len(x)


@contextlib.contextmanager
def measuring(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with its parameters frozen; afterwards both are as before."""
    training = model.training
    with frozen_parameters(model):
        model.eval()
        try:
            yield model
        finally:
            model.train(training)


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) logit of the label minus the largest other one; 0 or less means misclassified."""
    right = logits.gather(1, y[:, None])[:, 0]
    other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return right - other


def _parts(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(_MEASURE_ROWS), y.split(_MEASURE_ROWS), strict=True)
