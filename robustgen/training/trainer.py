"""The state of a training and how one step and one epoch change it; no files, no clock, no printing."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robustgen.errors import RobustgenError
from robustgen.precision import has_bfloat16
from robustgen.ranks import Ranks
from robustgen.rng import ExampleRng, generator_for
from robustgen.training.awp import adversarial_weights
from robustgen.training.data import TrainingData
from robustgen.training.measure import clean_accuracy, fgsm_accuracy, has_collapsed, measuring, pgd_accuracy
from robustgen.training.method import Attacked, Remade
from robustgen.training.model import TrainingModel, check_network, make_network
from robustgen.training.recipe import Recipe, TrainingSettings

__all__ = ["Accuracy", "Trainer", "learning_rate", "resolve_precision", "scheduled_rate"]

GUARD_STEPS = 50  # between two looks at one-step against multi-step accuracy; and one at the end of each epoch
GUARD_IMAGES = 256
GUARD_PGD_STEPS = 10
GUARD_MOST_STEPS = 5  # an attack of that many steps needs no guard
_ONE_CYCLE_START = 1 / 25  # of the highest learning rate, as torch's OneCycleLR has it
_HEALTHY_SHARE = 0.8  # only a state with this share of the best PGD accuracy is kept to go back to


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of the validation images classified correctly: as they are, and under PGD; None where not measured."""

    clean: float | None
    pgd: float | None

    @property
    def score(self) -> float:
        """What the best epoch is chosen by: robustness where it was trained for."""
        chosen = self.clean if self.pgd is None else self.pgd
        assert chosen is not None  # asked only where it was measured
        return chosen


@dataclass(kw_only=True)
class _Progress:
    """What a checkpoint holds beside tensors; plain numbers only."""

    step: int = 0  # steps done, over all epochs
    loss_sum: float = 0.0  # over the steps of this epoch
    attack_steps: int = 0
    best_fgsm: float = 0.0
    best_pgd: float = 0.0
    seconds: float = 0.0  # of this epoch, over all processes that worked on it
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


def resolve_precision(request: str, device: torch.device) -> str:
    """What "auto" means on this device: "bfloat16" where the hardware multiplies it, else "float32"."""
    if request != "auto":
        return request
    return "bfloat16" if has_bfloat16(device) else "float32"


def learning_rate(settings: TrainingSettings, step: int, total: int) -> float:
    """The learning rate of one step: up over the warm-up, then by the schedule."""
    return scheduled_rate(settings.lr, settings.schedule, settings.warmup, step, total, settings.milestones)


def scheduled_rate(
    highest: float, schedule: str, warmup: float, step: int, total: int, milestones: tuple[float, ...] = ()
) -> float:
    """The learning rate of one step of `total`, by the fields of `TrainingSettings` that say how it goes."""
    warm = round(warmup * total)
    if step < warm:
        rising = (step + 1) / warm
        if schedule == "one-cycle":
            rising = _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * 0.5 * (1 - math.cos(math.pi * rising))
        return highest * rising
    share = (step - warm) / max(1, total - warm)
    falling = 0.5 * (1 + math.cos(math.pi * share))
    passed = sum(step >= milestone * total for milestone in milestones)
    factor = {
        "linear": 1 - share, "cosine": falling, "one-cycle": falling, "piecewise": 0.1**passed, "constant": 1.0
    }  # fmt: skip
    return highest * factor[schedule]


class Trainer:
    """A training between two steps.

    Guarantee: with the same recipe, device, precision and number of threads, `state` loaded into a new trainer gives
    bit for bit what going on would have given. All chance is a function of seed, epoch, step and example.

    The weights that count are an exponential moving average. Batch norm's running statistics are averaged with them,
    rather than measured again afterwards: they then belong to the attacked images that the weights were trained on, and
    a resumed training needs no extra pass over the data.

    With several ranks each attacks its own part of the batch, with batch norm over that part; gradients and running
    statistics are averaged after every step, so that all ranks hold the same network.
    """

    def __init__(
        self, recipe: Recipe, data: TrainingData, device: torch.device, precision: str, ranks: Ranks | None = None
    ) -> None:
        self.recipe, self.data, self.device, self.precision = recipe, data, device, precision
        self.ranks = ranks or Ranks()
        self.settings = recipe.training
        self.method = recipe.training.make_method()
        torch.manual_seed(recipe.seed)
        network = make_network(recipe.network)
        model = TrainingModel(network, recipe.data.mean, recipe.data.std, precision)
        self.model = model.to(memory_format=torch.channels_last).to(device)
        check_network(self.model, data)
        self.average = AveragedModel(self.model, multi_avg_fn=self._average, use_buffers=True)
        self.optimizer = _optimizer(self.settings, self.model)
        self.at = _Progress(attack_steps=self.method.steps)
        self.best: dict[str, Any] | None = None
        self.x_validation, self.y_validation = data.x_validation.to(device), data.y_validation.to(device)
        self._order: tuple[int, Tensor] | None = None
        self.good = self._snapshot() if self.guarding else None

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.settings.epochs * self.data.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self.at.step // self.data.steps_per_epoch

    @property
    def guarding(self) -> bool:
        """Whether catastrophic overfitting is being watched for."""
        return self.method.guarded and self.at.attack_steps < GUARD_MOST_STEPS

    def step(self) -> float:
        """One step of the optimizer; returns the loss.

        Raises:
            RobustgenError: the loss is not finite.
        """
        step, epoch = self.at.step, self.epoch
        rows, x, y = self._batch(epoch, step)
        torch.manual_seed(generator_for(self.recipe.seed, "layers", step).initial_seed())  # for dropout and its like
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step, self.total)
        self.model.train()
        rng = ExampleRng.of(self.recipe.seed, rows, torch.full_like(rows, step))
        self.optimizer.zero_grad()
        value = self._backward(x, y, self.method.attack(self.model, x, y, rng))
        if not math.isfinite(value):
            raise RobustgenError(
                f"{self.recipe.name}: the loss is {value} in epoch {epoch + 1}, step {step + 1}; lower training.lr."
            )
        self._average_over_ranks()
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.at.step += 1
        self.at.loss_sum += value
        return value

    def _batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, images and labels of this rank: augmented as a whole batch, then cut."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.data.order(epoch)
        rows = self.data.rows(epoch, step % self.data.steps_per_epoch, self._order[1])
        x, y = self.data.batch(rows, epoch, step)
        size, ranks = len(rows), self.ranks
        mine = slice(ranks.rank * size // ranks.size, (ranks.rank + 1) * size // ranks.size)
        return rows[mine], x[mine].to(self.device), y[mine].to(self.device)

    def _backward(self, x: Tensor, y: Tensor, attacked: Attacked) -> float:
        """Gradients of the loss, at perturbed weights where the recipe asks for it; returns the loss over all ranks."""
        share = len(x) * self.ranks.size / self.data.batch_size
        if self.settings.awp:
            attacked = replace(attacked, clean=None)  # its graph belongs to the weights as they are
            with adversarial_weights(
                self.model, lambda: self.method.loss(self.model, x, y, attacked), self.settings.awp
            ):
                loss = self.method.loss(self.model, x, y, attacked)
                (loss * share).backward()
        else:
            loss = self.method.loss(self.model, x, y, attacked)
            (loss * share).backward()
        return sum(self.ranks.gather(float(loss.detach()) * share)) / self.ranks.size

    def _average_over_ranks(self) -> None:
        """Gradients and running statistics, where there are several ranks."""
        if self.ranks.size == 1:
            return
        held = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        held += [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        for tensor in held:
            dist.all_reduce(tensor)
            tensor.div_(self.ranks.size)

    @property
    def at_epoch_end(self) -> bool:
        """Whether the step just done was the last of its epoch."""
        return self.at.step % self.data.steps_per_epoch == 0

    def guard(self) -> str | None:
        """Look for catastrophic overfitting where it is time to; after a collapse go back and attack harder.

        Returns:
            What happened, in a sentence; None when all is well.
        """
        if not self.guarding or not (self.at_epoch_end or self.at.step % GUARD_STEPS == 0):
            return None
        assert self.method.threat is not None  # a guarded method has one
        x, y = self.x_validation[:GUARD_IMAGES], self.y_validation[:GUARD_IMAGES]
        with measuring(self.model) as model:
            fgsm = fgsm_accuracy(model, x, y, self.method.threat)
            pgd = pgd_accuracy(model, x, y, self.method.threat, steps=GUARD_PGD_STEPS)
        at = self.at
        if has_collapsed(fgsm, pgd, at.best_fgsm, at.best_pgd, self.data.dataset.classes):
            return self._fall_back(fgsm, pgd)
        at.best_fgsm, at.best_pgd = max(fgsm, at.best_fgsm), max(pgd, at.best_pgd)
        if pgd >= _HEALTHY_SHARE * at.best_pgd:
            self.good = self._snapshot()
        return None

    def finish_epoch(self) -> dict[str, Any]:
        """Measure the averaged weights, keep them if they are the best, and return the epoch's line of metrics."""
        epoch, last = self.at.step // self.data.steps_per_epoch, self.at.step >= self.total
        measured = last or epoch % self.settings.validate_every == 0
        accuracy = self.accuracy() if measured else Accuracy(clean=None, pgd=None)
        line = {
            "event": "epoch",
            "epoch": epoch,
            "step": self.at.step,
            "loss": self.at.loss_sum / self.data.steps_per_epoch,
            "clean_accuracy": accuracy.clean,
            "pgd_accuracy": accuracy.pgd,
            "attack_steps": self.at.attack_steps,
            "seconds": self.at.seconds,
            "images_per_second": self.data.steps_per_epoch * self.data.batch_size / max(self.at.seconds, 1e-9),
        }
        self.at.history.append(line)
        if measured and (self.best is None or accuracy.score >= self.best["score"]):  # ties go to the later epoch
            self.best = {"score": accuracy.score, "epoch": epoch, "state": self.weights()}
        self.at.loss_sum = self.at.seconds = 0.0
        self.at.finished = last
        return line

    def accuracy(self) -> Accuracy:
        """Of the averaged weights, on the validation images, in the precision of the training."""
        with measuring(self.average.module) as model:
            if isinstance(self.method, Remade):
                rng = ExampleRng.of(self.recipe.seed, range(len(self.x_validation)))
                x = self.method.measured_on(self.x_validation, rng)
                return Accuracy(clean=clean_accuracy(model, x, self.y_validation), pgd=None)
            clean = clean_accuracy(model, self.x_validation, self.y_validation)
            if self.method.threat is None:
                return Accuracy(clean=clean, pgd=None)
            pgd = pgd_accuracy(
                model, self.x_validation, self.y_validation, self.method.threat, steps=self.settings.validation_steps
            )
            return Accuracy(clean=clean, pgd=pgd)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the averaged network's state, contiguous, on the CPU."""
        averaged = self.average.module
        assert isinstance(averaged, TrainingModel)  # a copy of self.model
        state = averaged.network.state_dict()
        return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}

    def state(self) -> dict[str, Any]:
        """Everything a new trainer needs to go on; tensors, numbers, texts, lists and dicts only."""
        return {
            **self._snapshot(),
            "precision": self.precision,
            "generated": [source.sha256 for source in self.data.generated],
            "at": vars(self.at),
            "best": self.best,
            "good": self.good,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._restore(state)
        self.at = _Progress(**state["at"])
        self.best, self.good = state["best"], state["good"]
        self._strengthen()

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, count: Any) -> None:
        """Exponential moving average whose decay rises from 0.1, so that the first weights are soon forgotten."""
        decay = min(self.settings.ema_decay, (1 + int(count)) / (10 + int(count)))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)  # batch norm's counter

    def _snapshot(self) -> dict[str, Any]:
        return {
            "model": copy.deepcopy(self.model.state_dict()),
            "average": copy.deepcopy(self.average.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "step": self.at.step,
            "loss_sum": self.at.loss_sum,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # it would keep, and change, these tensors
        self.at.step, self.at.loss_sum = state["step"], state["loss_sum"]

    def _strengthen(self) -> None:
        while self.method.steps < self.at.attack_steps:
            self.method = self.method.stronger()

    def _fall_back(self, fgsm: float, pgd: float) -> str:
        assert self.good is not None  # kept from the first step on
        found = self.at.step
        self._restore(self.good)
        if self.at_epoch_end:
            self.at.loss_sum = 0.0
        self.at.attack_steps += 1
        self._strengthen()
        self.at.history.append(
            {
                "event": "fallback",
                "step": found,
                "back_to_step": self.at.step,
                "fgsm_accuracy": fgsm,
                "pgd_accuracy": pgd,
                "best_pgd_accuracy": self.at.best_pgd,
                "attack_steps": self.at.attack_steps,
            }
        )
        return (
            f"catastrophic overfitting at step {found}: {fgsm:.1%} accuracy under FGSM, {pgd:.1%} under PGD "
            f"(best {self.at.best_pgd:.1%}); back to step {self.at.step}, from now on with "
            f"{self.at.attack_steps} attack steps."
        )


def _optimizer(settings: TrainingSettings, model: nn.Module) -> torch.optim.Optimizer:
    """Weights decay, biases and the parameters of norms do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, settings.lr, betas=(0.9, 0.99))
