"""Classification accuracy score: how well a classifier that saw nothing but these images does on real ones.

It catches what a distance between features does not: wrong labels, missing variety within a class, shortcuts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.dataset import Dataset
from robustgen.errors import RobustgenError, SpecError
from robustgen.nets import build_network
from robustgen.precision import has_bfloat16
from robustgen.progress import Progress, Silent
from robustgen.rng import generator_for
from robustgen.statistics import Estimate, proportion
from robustgen.training.augment import AUGMENTATIONS

__all__ = ["CasResult", "CasSettings", "classification_accuracy_score"]

_TEST_ROWS = 500  # images in one forward pass when accuracy is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class CasSettings:
    """One training of the small network; the same for generated and for real images, whatever their number.

    Tuned on real images of Fashion-MNIST with held-out training images, never on generated or test images.

    Args:
        steps: of the optimizer; 2350 of 256 images are ten passes over 60,000.
        batch_size: images a step.
        lr: the highest learning rate of one-cycle: up over the first `warmup` of the steps, then down to 0.
        warmup: share of the steps, in (0, 1).
        weight_decay: of AdamW.
        label_smoothing: of the cross-entropy.
        widths, depths, stem_stride: of `robustgen.nets.SmallResNet`.
        augment: names in `robustgen.training.augment.AUGMENTATIONS`.
        seed: of weights, order and augmentation.
    """

    steps: int = 2350
    batch_size: int = 256
    lr: float = 5e-3
    warmup: float = 0.2
    weight_decay: float = 1e-2
    label_smoothing: float = 0.1
    widths: tuple[int, ...] = (32, 64)
    depths: tuple[int, ...] = (2, 2)
    stem_stride: int = 2
    augment: tuple[str, ...] = ("flip", "crop")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 2 or self.batch_size < 2:
            raise SpecError(f"steps and batch_size must be >= 2, got {self.steps} and {self.batch_size}.")
        if not self.lr > 0 or not 0 < self.warmup < 1:
            raise SpecError(f"lr must be > 0 and warmup in (0, 1), got {self.lr:g} and {self.warmup:g}.")
        unknown = [name for name in self.augment if name not in AUGMENTATIONS]
        if unknown:
            raise SpecError(f"augment: unknown '{unknown[0]}'; known: {', '.join(AUGMENTATIONS)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CasResult:
    """Accuracy on real test images after a training on `n_train` images, and what it took."""

    accuracy: Estimate
    n_train: int
    steps: int
    seconds: float


def classification_accuracy_score(
    images: Tensor,
    labels: Tensor,
    test: Dataset,
    settings: CasSettings | None = None,
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> CasResult:
    """Train a small network on these images only, and test it on all of `test`.

    The interval is that of a test set of this size; two trainings on the same images differ besides, by their seeds.

    Args:
        images: (N, H, W, C) uint8, generated or, for the figure to compare with, as many real ones.
        labels: (N,) int64.
        test: real images that neither the generator nor this training saw.
        settings: the budget.
        progress: told about every step.
        device: where to train; None for the CPU. bfloat16 autocast where the processor multiplies it.

    Raises:
        SpecError: images and labels that do not fit one another or `test`.
        RobustgenError: the loss is not finite.

    Source: Ravuri & Vinyals 2019, arXiv:1905.10887, section 3.
    Differs: a small network for a fixed number of steps, where the paper trains a ResNet-50 to convergence.
    """
    settings, progress = settings or CasSettings(), progress or Silent()
    device, began = device or torch.device("cpu"), time.perf_counter()
    _check(images, labels, test)
    x = images.permute(0, 3, 1, 2).contiguous()
    network = _train(_network(settings, test), x, labels, settings, progress, device)
    right = _correct(network, test, device)
    return CasResult(
        accuracy=proportion(right, len(test)),
        n_train=len(images),
        steps=settings.steps,
        seconds=time.perf_counter() - began,
    )


def _check(images: Tensor, labels: Tensor, test: Dataset) -> None:
    channels, height, width = test.shape
    if images.ndim != 4 or images.dtype != torch.uint8 or tuple(images.shape[1:]) != (height, width, channels):
        raise SpecError(
            f"CAS: images must be uint8 (N, {height}, {width}, {channels}) as {test.name} has them, "
            f"got {tuple(images.shape)} of {images.dtype}."
        )
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise SpecError(f"CAS: {len(images)} images need as many whole labels, got shape {tuple(labels.shape)}.")
    if not len(images) or int(labels.min()) < 0 or int(labels.max()) >= test.classes:
        raise SpecError(f"CAS: labels must lie in 0 .. {test.classes - 1}, the classes of {test.name}.")


def _network(settings: CasSettings, test: Dataset) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return build_network(
            "small-resnet",
            widths=settings.widths,
            depths=settings.depths,
            stem_stride=settings.stem_stride,
            channels=test.shape[0],
            classes=test.classes,
        )


def _batches(n: int, settings: CasSettings) -> Iterator[Tensor]:
    """Rows of each step: passes over all images, each in an order of its own, one after the other."""
    waiting, epoch = torch.empty(0, dtype=torch.int64), 0
    for _ in range(settings.steps):
        while len(waiting) < settings.batch_size:
            order = torch.randperm(n, generator=generator_for(settings.seed, "cas-order", epoch))
            waiting, epoch = torch.cat([waiting, order]), epoch + 1
        yield waiting[: settings.batch_size]
        waiting = waiting[settings.batch_size :]


def _train(
    network: nn.Module, x: Tensor, labels: Tensor, settings: CasSettings, progress: Progress, device: torch.device
) -> nn.Module:
    """One-cycle AdamW on x (N, C, H, W) uint8; returns the network in eval mode."""
    network = network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), settings.lr, weight_decay=settings.weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        settings.lr,
        total_steps=settings.steps,
        pct_start=settings.warmup,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    progress.start(f"CAS, {len(x)} images", settings.steps)
    for step, rows in enumerate(_batches(len(x), settings)):
        batch, rng = x[rows], generator_for(settings.seed, "cas-augment", step)
        for name in settings.augment:
            batch = AUGMENTATIONS[name](batch, rng)
        batch = _prepared(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            logits = network(batch)
        loss = F.cross_entropy(logits.float(), labels[rows].to(device), label_smoothing=settings.label_smoothing)
        if not bool(loss.isfinite()):
            raise RobustgenError(f"CAS: the loss is not finite in step {step + 1}; lower its learning rate.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
        progress.advance(step + 1, f"loss {loss.item():.3f}")
    return network.eval()


@torch.no_grad()
def _correct(network: nn.Module, test: Dataset, device: torch.device) -> int:
    """How many test images are classified as labelled, in float32."""
    right = 0
    for first in range(0, len(test), _TEST_ROWS):
        x, y = test.batch(range(first, min(first + _TEST_ROWS, len(test))))
        right += int((network(_prepared(x, device)).argmax(1).cpu() == y).sum())
    return right


def _prepared(x: Tensor, device: torch.device) -> Tensor:
    """(B, C, H, W) bytes or floats in [0, 1] to floats in [-1, 1] on the device, channels_last."""
    x = x.to(device, memory_format=torch.channels_last)
    pixels = x.float() / 255 if x.dtype == torch.uint8 else x
    return pixels * 2 - 1
