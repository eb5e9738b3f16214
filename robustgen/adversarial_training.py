"""How a training step treats its batch: plainly, or by attacking it first; and the guard of the one-step attack.

A new method (TRADES, AWP, ...) is one class with `make` and `loss` here, filed in `METHODS`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

__all__ = [
    "METHODS",
    "FastAdversarial",
    "Method",
    "PgdAdversarial",
    "Standard",
    "clean_accuracy",
    "fgsm_accuracy",
    "has_collapsed",
    "measuring",
    "pgd_accuracy",
]

_MEASURE_ROWS = 256  # images in one forward pass when accuracy is measured


class Method(Protocol):
    """What one step of training does with its batch."""

    @property
    def threat(self) -> ThreatModel | None:
        """What it trains against."""

    @property
    def steps(self) -> int:
        """Gradient steps of the attack inside training; 0 for none."""

    @property
    def guarded(self) -> bool:
        """Whether catastrophic overfitting is to be watched for."""

    @classmethod
    def make(
        cls, threat: ThreatModel | None, label_smoothing: float, steps: int | None, rel_step: float | None
    ) -> Self:
        """From what a recipe says, None being the method's own default; SpecError where that makes no sense."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Tensor:
        """The mean loss over images x (B, C, H, W) in [0, 1] and labels y (B,), to be differentiated."""

    def stronger(self) -> Self:
        """The same with an attack of one more step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standard:
    """Cross-entropy on the images as they are; `threat` only says what the result is measured with."""

    threat: ThreatModel | None = None
    label_smoothing: float = 0.0
    steps: int = 0
    guarded: bool = False

    @classmethod
    def make(
        cls, threat: ThreatModel | None, label_smoothing: float, steps: int | None, rel_step: float | None
    ) -> Self:
        if steps is not None or rel_step is not None:
            field = "steps" if steps is not None else "rel_step"
            raise SpecError(f"training.{field}: method 'standard' attacks nothing; remove the line.")
        return cls(threat=threat, label_smoothing=label_smoothing)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Tensor:
        return F.cross_entropy(model(x), y, label_smoothing=self.label_smoothing)

    def stronger(self) -> Self:
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class PgdAdversarial:
    """Minimise the loss at the points that projected gradient ascent finds from a random start.

    Source: Madry et al. 2018, arXiv:1706.06083, eq. (2.1) and section 2.1.
    Differs: labels are smoothed in the outer loss when asked; the attack runs in training mode, so that its forward
    passes count in the running statistics of batch norm.
    """

    threat: ThreatModel
    label_smoothing: float = 0.0
    steps: int = 10
    rel_step: float = 0.25  # step length as a fraction of eps
    guarded: bool = False

    @classmethod
    def make(
        cls, threat: ThreatModel | None, label_smoothing: float, steps: int | None, rel_step: float | None
    ) -> Self:
        if threat is None:
            raise SpecError(
                'training.threat: adversarial training needs a threat model, such as threat = "linf:8/255".'
            )
        method = cls(threat=threat, label_smoothing=label_smoothing)
        return replace(method, steps=steps or method.steps, rel_step=rel_step or method.rel_step)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Tensor:
        x_adv = self.threat.random_start(x, rng, "training")
        with _frozen(model):
            x_adv = _ascend(model, x, y, x_adv, self.threat, self.steps, self.rel_step)
        return F.cross_entropy(model(x_adv), y, label_smoothing=self.label_smoothing)

    def stronger(self) -> Self:
        return replace(self, steps=self.steps + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FastAdversarial(PgdAdversarial):
    """Adversarial training with one step of 1.25 eps from a uniform start: as cheap as two standard trainings.

    It may collapse: the network learns to defeat one-step attacks only ("catastrophic overfitting"). So it is guarded.

    Source: Wong, Rice & Kolter 2020, arXiv:2001.03994, algorithm 3 and section 5.
    Differs: the start is clipped to [0, 1]; after a collapse the attack takes more steps, of 1.25 eps / steps each.
    """

    steps: int = 1
    rel_step: float = 1.25
    guarded: bool = True

    @classmethod
    def make(
        cls, threat: ThreatModel | None, label_smoothing: float, steps: int | None, rel_step: float | None
    ) -> Self:
        if steps not in (None, 1):
            raise SpecError(f"training.steps: method 'fgsm-rs' takes one step, got {steps}; use method = \"pgd-at\".")
        return super(FastAdversarial, cls).make(threat, label_smoothing, None, rel_step)

    def stronger(self) -> Self:
        steps = self.steps + 1
        return replace(self, steps=steps, rel_step=self.rel_step * self.steps / steps)


METHODS: dict[str, type[Standard | PgdAdversarial]] = {
    "standard": Standard,
    "fgsm-rs": FastAdversarial,
    "pgd-at": PgdAdversarial,
}


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
        with torch.no_grad():
            logits = model(_ascend(model, a, b, start, threat, 1, 1.25))
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
    with _frozen(model):
        model.eval()
        try:
            yield model
        finally:
            model.train(training)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for parameters: an attack needs them for the images only."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _ascend(
    model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, threat: ThreatModel, steps: int, rel_step: float
) -> Tensor:
    """`steps` steps of steepest ascent on the cross-entropy, projected after each."""
    for _ in range(steps):
        with torch.enable_grad():
            leaf = x_adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        x_adv = threat.project(x, leaf.detach() + rel_step * threat.eps * threat.steepest(grad))
    return x_adv


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) logit of the label minus the largest other one; 0 or less means misclassified."""
    right = logits.gather(1, y[:, None])[:, 0]
    other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return right - other


def _parts(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(_MEASURE_ROWS), y.split(_MEASURE_ROWS), strict=True)
