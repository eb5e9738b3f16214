"""The state of a generator's training and how one step changes it; no files, no clock, no printing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robustgen.errors import RobustgenError
from robustgen.generator.augment import Augmentation
from robustgen.generator.denoiser import Denoiser, to_generator_range
from robustgen.generator.network import Unet, low_precision_copy, prepare_for
from robustgen.generator.objective import DdpmObjective, EdmObjective, Objective
from robustgen.generator.recipe import GeneratorRecipe, TrainingSettings
from robustgen.ranks import Ranks
from robustgen.rng import generator_for
from robustgen.training.data import TrainingData

__all__ = ["BANDS", "GeneratorTrainer", "learning_rate", "make_objective"]

BANDS = (0.05, 0.2, 0.5, 1.0, 3.0)  # edges of the sigma bands that the loss is reported in
_VALIDATION_ROWS = 1024


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """The learning rate of one step: linear warm-up, then the schedule down to 0."""
    shown, total = step * settings.batch_size, settings.steps * settings.batch_size
    if shown < settings.warmup:
        return settings.lr * (shown + settings.batch_size) / (settings.warmup + settings.batch_size)
    share = (shown - settings.warmup) / max(1, total - settings.warmup)
    return settings.lr * (0.5 * (1 + math.cos(math.pi * share)) if settings.schedule == "cosine" else 1.0)


def make_objective(recipe: GeneratorRecipe, x: Tensor) -> EdmObjective | DdpmObjective:
    """The loss of a recipe; what it leaves open is measured on the training images x (N, C, H, W) uint8."""
    given = recipe.objective
    if given.kind == "ddpm":
        return DdpmObjective(schedule=given.schedule, steps=given.steps, prediction=given.prediction)
    mean, sigma_data = given.mean, given.sigma_data
    if mean is None or sigma_data is None:
        pixels = to_generator_range(x.double() / 255)
        centre = pixels.mean((0, 2, 3))
        mean = mean or tuple(round(float(value), 4) for value in centre)
        sigma_data = sigma_data or round(float((pixels - centre.reshape(1, -1, 1, 1)).square().mean().sqrt()), 4)
    return EdmObjective(sigma_data=sigma_data, mean=mean, p_mean=given.p_mean, p_std=given.p_std)


@dataclass(kw_only=True)
class Place:
    """Where a training stands; plain numbers only."""

    step: int = 0
    seconds: float = 0.0  # over all processes that worked on it
    loss_sums: list[float] = field(default_factory=lambda: [0.0] * (len(BANDS) + 1))  # since the last line of metrics
    loss_counts: list[int] = field(default_factory=lambda: [0] * (len(BANDS) + 1))
    history: list[dict[str, Any]] = field(default_factory=list)


class GeneratorTrainer:
    """A training between two steps.

    Guarantee: with the same recipe, device, precision and number of threads, `state` loaded into a new trainer gives
    bit for bit what going on would have given. All chance is a function of seed, step and row, never of the rank.

    In bfloat16 the network computes in a copy, while optimizer and average work on the float32 original: no cast is
    repeated inside the step, which autocast does at every layer.
    """

    def __init__(
        self, recipe: GeneratorRecipe, data: TrainingData, device: torch.device, precision: str, ranks: Ranks
    ) -> None:
        self.recipe, self.data, self.device, self.precision, self.ranks = recipe, data, device, precision, ranks
        self.settings = recipe.training
        self.objective: Objective = make_objective(recipe, data.x)
        self.classes = data.dataset.classes if recipe.data.conditional else 0
        self.augmentation = Augmentation(self.settings.augment) if self.settings.augment else None
        torch.manual_seed(recipe.seed)
        shape = data.dataset.shape
        unet = Unet(
            recipe.network,
            shape,
            self.classes,
            augmented=self.augmentation is not None,
            noise_scale=self.objective.noise_scale,
        )
        self.network = prepare_for(unet, device).train()
        self.average = AveragedModel(self.network, multi_avg_fn=self._average)
        self.average.eval()
        low = precision == "bfloat16"
        self.worker: nn.Module = low_precision_copy(self.network) if low else self.network
        self.denoiser = self.objective.denoiser(self.worker, shape, self.classes).to(device)
        self.optimizer = _optimizer(self.settings, self.network, device)
        self.at = Place()
        self.order: tuple[int, Tensor] | None = None

    @property
    def images(self) -> int:
        """Images shown so far."""
        return self.at.step * self.settings.batch_size

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.at.step >= self.settings.steps

    def step(self) -> float:
        """One step of the optimizer; returns the mean loss of the batch.

        Raises:
            RobustgenError: the loss is not finite.
        """
        step = self.at.step
        x, label, augmentation, noise, sigma = self._batch(step)
        torch.manual_seed(generator_for(self.recipe.seed, "layers", step, self.ranks.rank).initial_seed())  # dropout
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step)
        losses = self.objective.loss(self.denoiser, x, noise, sigma, label=label, augmentation=augmentation)
        share = len(x) / self.settings.batch_size
        (losses.mean() * share).backward()
        value = self._record(losses.detach(), sigma)
        if not math.isfinite(value):
            self._forget_gradients()
            raise RobustgenError(
                f"{self.recipe.name}: the loss is {value} in step {step + 1} (images {self.images + 1} to "
                f"{self.images + self.settings.batch_size} of the training); lower training.lr."
            )
        self._update()
        self.at.step += 1
        return value

    def _batch(self, step: int) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
        """Images, labels, augmentation, noise and sigma of this rank's rows: drawn for the whole batch, then cut."""
        size, rng = self.settings.batch_size, generator_for(self.recipe.seed, "batch", step)
        rows = self._rows(step)
        x, label = to_generator_range(self.data.x[rows].float() / 255), self.data.y[rows]
        if self.settings.flip:
            x = torch.where((torch.rand(size, generator=rng) < 0.5)[:, None, None, None], x.flip(3), x)
        withheld = torch.rand(size, generator=rng) < self.settings.label_dropout
        sigma = self.objective.sigma(size, rng)
        noise = torch.randn(x.shape, generator=rng)
        parameters = None
        if self.augmentation is not None:
            x, parameters = self.augmentation(x, rng)
        mine = slice(self.ranks.rank * size // self.ranks.size, (self.ranks.rank + 1) * size // self.ranks.size)
        label = torch.where(withheld, -1, label)
        return (
            x[mine].to(self.device),
            label[mine].to(self.device) if self.classes else None,
            None if parameters is None else parameters[mine].to(self.device),
            noise[mine].to(self.device),
            sigma[mine].to(self.device),
        )

    def _rows(self, step: int) -> Tensor:
        """The training images of a step: passes over all of them, each in an order of its own, one after the other."""
        size, n = self.settings.batch_size, len(self.data.x)
        places = torch.arange(step * size, (step + 1) * size)
        parts = []
        for epoch in range(int(places[0]) // n, int(places[-1]) // n + 1):
            if self.order is None or self.order[0] != epoch:
                self.order = epoch, self.data.order(epoch)
            parts.append(self.order[1][places[places // n == epoch] % n])
        return torch.cat(parts)

    def _record(self, losses: Tensor, sigma: Tensor) -> float:
        """Add the losses of all ranks to their sigma bands, and return their mean."""
        bands = torch.bucketize(sigma, torch.tensor(BANDS, device=sigma.device))
        sums = torch.zeros(2, len(BANDS) + 1, dtype=torch.float64, device=sigma.device)
        sums[0].index_add_(0, bands, losses.double())
        sums[1].index_add_(0, bands, torch.ones_like(losses, dtype=torch.float64))
        if self.ranks.size > 1:
            dist.all_reduce(sums)
        for band, (total, count) in enumerate(zip(*sums.tolist(), strict=True)):
            self.at.loss_sums[band] += total
            self.at.loss_counts[band] += int(count)
        return float(sums[0].sum() / sums[1].sum())

    def _forget_gradients(self) -> None:
        for parameter in self.worker.parameters():
            parameter.grad = None

    def _update(self) -> None:
        """Gradients to the float32 weights, over all ranks; step; average; weights back to the copy that computes."""
        weights, workers = list(self.network.parameters()), list(self.worker.parameters())
        if self.worker is not self.network:
            for weight, worker in zip(weights, workers, strict=True):
                # In the layout of the weight: fused Adam goes through both as they lie in memory.
                weight.grad = None if worker.grad is None else torch.empty_like(weight).copy_(worker.grad)
        if self.ranks.size > 1:
            for weight in weights:
                if weight.grad is not None:
                    dist.all_reduce(weight.grad)
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(weights, self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._forget_gradients()
        self.average.update_parameters(self.network)
        self._refresh_worker()

    @torch.no_grad()
    def _refresh_worker(self) -> None:
        if self.worker is not self.network:
            torch._foreach_copy_(list(self.worker.parameters()), list(self.network.parameters()))

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, count: Any) -> None:
        """EMA by a half-life in images, which is at most a share of those shown (EDM: 0.5^(batch / H))."""
        shown = (int(count) + 1) * self.settings.batch_size
        half_life = min(self.settings.ema_half_life, self.settings.ema_ramp * shown)
        torch._foreach_lerp_(averaged, current, 1 - 0.5 ** (self.settings.batch_size / max(half_life, 1e-9)))

    def averaged_denoiser(self) -> Denoiser:
        """The averaged weights as a denoiser, in the precision of the training."""
        network = self.average.module
        if self.precision == "bfloat16":
            network = low_precision_copy(network)
        return self.objective.denoiser(network, self.data.dataset.shape, self.classes).to(self.device).eval()

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The loss of the averaged weights on held-out images, with noise that is the same each time."""
        rng = generator_for(self.recipe.seed, "validation")
        x = to_generator_range(self.data.x_validation[:_VALIDATION_ROWS])
        label = self.data.y_validation[: len(x)] if self.classes else None
        sigma, noise = self.objective.sigma(len(x), rng), torch.randn(x.shape, generator=rng)
        denoiser, losses = self.averaged_denoiser(), []
        for rows in torch.arange(len(x)).split(self.settings.batch_size):
            given = None if label is None else label[rows].to(self.device)
            clean, fresh, level = (part[rows].to(self.device) for part in (x, noise, sigma))
            losses.append(self.objective.loss(denoiser, clean, fresh, level, label=given))
        return float(torch.cat(losses).mean())

    def line(self, images_per_second: float) -> dict[str, Any]:
        """A line of metrics over the steps since the last one, which it closes."""
        at = self.at
        means = [total / count if count else None for total, count in zip(at.loss_sums, at.loss_counts, strict=True)]
        line = {
            "step": at.step,
            "images": self.images,
            "loss": sum(at.loss_sums) / max(1, sum(at.loss_counts)),
            "loss_by_band": means,
            "validation_loss": self.validation_loss(),
            "lr": learning_rate(self.settings, at.step),
            "seconds": round(at.seconds, 1),
            "images_per_second": round(images_per_second, 1),
        }
        at.loss_sums, at.loss_counts = [0.0] * len(at.loss_sums), [0] * len(at.loss_counts)
        at.history.append(line)
        return line

    def weights(self) -> dict[str, Tensor]:
        """A copy of the averaged network's state, contiguous, float32, on the CPU."""
        state = self.average.module.state_dict()
        return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}

    def state(self) -> dict[str, Any]:
        """Everything a new trainer needs to go on; tensors, numbers, texts, lists and dicts only."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision,
            "at": vars(self.at),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.at = Place(**state["at"])
        self._refresh_worker()


def _optimizer(settings: TrainingSettings, network: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    kind, betas = (torch.optim.Adam, (0.9, 0.999)) if settings.optimizer == "adam" else (torch.optim.AdamW, (0.9, 0.99))
    fused = device.type in ("cpu", "cuda")
    return kind(network.parameters(), settings.lr, betas=betas, weight_decay=settings.weight_decay, fused=fused)
