"""What every training of a patch shares: the patch, its step rule, smoothness and print; files on the way."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from robustgen.errors import RobustgenError
from robustgen.patch.physical import non_printability, total_variation
from robustgen.rng import generator_for
from robustgen.training.folder import CHECKPOINT_SECONDS, TrainingFolder

__all__ = ["Ascent", "AscentSettings", "run_ascent"]

_LINES = 20  # of metrics.jsonl, about


class AscentSettings(Protocol):
    """What the step rule depends on."""

    @property
    def seed(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def schedule(self) -> str: ...

    @property
    def optimizer(self) -> str: ...

    @property
    def tv(self) -> float: ...

    @property
    def nps(self) -> float: ...


class Ascent(ABC):
    """A patch in the middle of its training; what it is trained for is said by `objective`.

    Attributes:
        patch: (C, h, w) in [0, 1].
        leaf: the same, with gradients.
        at: steps done.
        place: (row, column) of the upper left pixel, once it is known; None while it is random.
        history: lines for metrics.jsonl.
    """

    def __init__(
        self, settings: AscentSettings, channels: int, mask: Tensor, colours: Tensor, device: torch.device
    ) -> None:
        self.settings = settings
        self.mask, self.colours = mask.to(device), colours.to(device)
        shape = (channels, *mask.shape[1:])
        self.patch = torch.rand(shape, generator=generator_for(settings.seed, "patch start")).to(device)
        self.leaf = torch.nn.Parameter(self.patch)
        self.adam = torch.optim.Adam([self.leaf], lr=settings.lr)
        self.at = 0
        self.place: tuple[int, int] | None = None
        self.history: list[dict[str, Any]] = []

    @abstractmethod
    def objective(self, patch: Tensor) -> Tensor:
        """The mean loss of a patch on the batch of step `at`; it falls."""

    def step(self) -> float:
        """One step on one batch; returns its loss, which falls.

        Raises:
            RobustgenError: the loss is not finite.
        """
        settings = self.settings
        loss = self.objective(self.leaf)
        if settings.tv:
            loss = loss + settings.tv * total_variation(self.leaf, self.mask)
        if settings.nps:
            loss = loss + settings.nps * non_printability(self.leaf, self.mask, self.colours)
        (grad,) = torch.autograd.grad(loss, self.leaf)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RobustgenError(f"the loss is {value} at step {self.at}; lower --lr, or look at what is attacked.")
        self._update(grad)
        self.at += 1
        if self.at % max(1, settings.steps // _LINES) == 0 or self.at == settings.steps:
            self.history.append({"step": self.at, "loss": value})
        return value

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "at": self.at, "patch": self.patch, "place": self.place, "history": self.history,
            "adam": self.adam.state_dict(),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.at, self.history = state["at"], state["history"]
        self.place = None if state["place"] is None else tuple(state["place"])
        with torch.no_grad():
            self.leaf.copy_(state["patch"])
        self.adam.load_state_dict(state["adam"])

    def rows(self, count: int, batch_size: int) -> list[int]:
        """Which of `count` examples step `at` sees: each epoch all in an order of its own, a rest left out."""
        epoch, k = divmod(self.at, count // batch_size)
        order = torch.randperm(count, generator=generator_for(self.settings.seed, "patch order", epoch))
        rows: list[int] = order[k * batch_size : (k + 1) * batch_size].tolist()
        return rows

    def _update(self, grad: Tensor) -> None:
        """One step of the rule that was asked for, then back into [0, 1]."""
        settings = self.settings
        share = 0.5 * (1 + math.cos(math.pi * self.at / settings.steps)) if settings.schedule == "cosine" else 1.0
        with torch.no_grad():
            if settings.optimizer == "sign":
                self.leaf.sub_(settings.lr * share * grad.sign())
            else:
                self.adam.param_groups[0]["lr"], self.leaf.grad = settings.lr * share, grad
                self.adam.step()
            self.leaf.clamp_(0, 1)


def run_ascent(trainer: Ascent, folder: TrainingFolder, what: str) -> None:
    """All steps that are left, from the folder's checkpoint on; a checkpoint every two minutes and at the end."""
    saved, total = time.monotonic(), trainer.settings.steps
    checkpoint = folder.read_checkpoint()
    if checkpoint is not None:
        trainer.load_state(checkpoint)
    begins = f"goes on after step {trainer.at}" if trainer.at else "begins"
    folder.note(f"training {begins}: {total} steps, {what}.")
    folder.progress.start("patch", total)
    while trainer.at < total:
        loss = trainer.step()
        if trainer.at == total or time.monotonic() - saved >= CHECKPOINT_SECONDS:
            _save(trainer, folder)
            saved = time.monotonic()
        folder.progress.advance(trainer.at, f"loss {loss:.3f}")
    _save(trainer, folder)


def _save(trainer: Ascent, folder: TrainingFolder) -> None:
    folder.write_metrics(trainer.history)
    folder.write_checkpoint(trainer.state())
