"""The state of a detector's training and how one step changes it; no files, no clock, no printing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robustgen.dataset import Dataset
from robustgen.detectors.average_precision import average_precision, match
from robustgen.detectors.detector import detect
from robustgen.detectors.network import TinyDetector, batched, map_shape
from robustgen.detectors.recipe import DetectorRecipe
from robustgen.detectors.scenes import ComposedScenes
from robustgen.errors import RobustgenError, SpecError
from robustgen.rng import stage_seed
from robustgen.training.data import split_validation
from robustgen.training.trainer import scheduled_rate

__all__ = ["DetectorTrainer", "training_scenes"]

_CLIP = 10.0  # largest norm of a gradient, against the rare scene that would undo much


def training_scenes(recipe: DetectorRecipe, dataset: Dataset) -> tuple[ComposedScenes, ComposedScenes]:
    """Scenes of the training pictures, one for each row of each step, and scenes of those held out.

    Raises:
        SpecError: too few pictures, or colour ones.
    """
    held_out = split_validation(dataset.labels, min(recipe.data.validation, len(dataset)))
    kept = tuple(sorted(set(range(len(dataset))) - set(held_out)))
    if not kept:
        raise SpecError(
            f"{dataset.name} has {len(dataset)} pictures; data.validation = {recipe.data.validation} leaves none to "
            "train on; lower it in the recipe."
        )
    count = recipe.training.steps * recipe.training.batch_size
    return (
        ComposedScenes(dataset=dataset, pool=kept, settings=recipe.scenes, count=count, seed=recipe.seed),
        ComposedScenes(
            dataset=dataset, pool=tuple(held_out), settings=recipe.scenes, count=recipe.data.scenes,
            seed=stage_seed(recipe.seed, "validation scenes"),
        ),
    )  # fmt: skip


@dataclass(kw_only=True)
class Place:
    """Where a training stands; plain numbers only."""

    step: int = 0
    seconds: float = 0.0  # over all processes that worked on it
    loss_sum: float = 0.0  # since the last line of metrics
    history: list[dict[str, Any]] = field(default_factory=list)


class DetectorTrainer:
    """A training between two steps.

    Guarantee: with the same recipe, device, precision and number of threads, `state` loaded into a new trainer gives
    bit for bit what going on would have given: the scenes of a step are a function of the seed and the step.

    The weights that count are an exponential moving average, running statistics of batch norm included.
    """

    def __init__(
        self, recipe: DetectorRecipe, scenes: ComposedScenes, validation: ComposedScenes, device: torch.device,
        precision: str,
    ) -> None:  # fmt: skip
        self.recipe, self.scenes, self.validation = recipe, scenes, validation
        self.device, self.precision = device, precision
        self.settings = recipe.training
        _check(recipe, scenes)
        torch.manual_seed(recipe.seed)
        self.model = TinyDetector(recipe.network).to(memory_format=torch.channels_last).to(device).train()
        decay = get_ema_multi_avg_fn(self.settings.ema_decay)
        self.average = AveragedModel(self.model, multi_avg_fn=decay, use_buffers=True)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.model.parameters() if p.ndim > 1]},
            {"params": [p for p in self.model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, self.settings.lr, weight_decay=self.settings.weight_decay)
        self.at = Place()

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.at.step >= self.settings.steps

    def step(self) -> float:
        """One step of the optimizer on scenes of its own; returns the loss.

        Raises:
            RobustgenError: the loss is not finite.
        """
        step, size = self.at.step, self.settings.batch_size
        for group in self.optimizer.param_groups:
            group["lr"] = scheduled_rate(
                self.settings.lr, self.settings.schedule, self.settings.warmup, step, self.settings.steps
            )
        scenes = self.scenes.take(range(step * size, (step + 1) * size))
        targets = [{key: value.to(self.device) for key, value in scene.target().items()} for scene in scenes]
        images = batched([scene.image.to(self.device) for scene in scenes])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits, boxes = self.model.predict(images)
        losses = self.model.losses(logits.float(), boxes.float(), targets, map_shape(images))
        loss: Tensor = sum(losses.values())  # type: ignore[assignment]
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RobustgenError(
                f"{self.recipe.name}: the loss is {value} in step {step + 1}; lower training.lr in the recipe."
            )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.at.step += 1
        self.at.loss_sum += value
        return value

    @property
    def due(self) -> bool:
        """Whether a line of metrics belongs after the step just done."""
        return self.at.step % self.settings.validate_every == 0 or self.finished

    def line(self) -> dict[str, Any]:
        """Measure the averaged weights on the validation scenes; the line is kept in the history."""
        last = self.at.history[-1]["step"] if self.at.history else 0
        ap = self.validate()
        line = {
            "step": self.at.step, "loss": self.at.loss_sum / max(1, self.at.step - last), "ap50": ap[0], "ap": ap[1],
            "seconds": round(self.at.seconds, 1),
        }  # fmt: skip
        self.at.history.append(line)
        self.at.loss_sum = 0.0
        return line

    def validate(self) -> tuple[float, float]:
        """AP at IoU 0.5, and AP over all thresholds, of the averaged weights as they will be stored."""
        model = TinyDetector(self.recipe.network)
        model.load_state_dict({key: value.float() for key, value in self.weights().items()})
        scenes = self.validation.take(range(len(self.validation)))
        found = detect(model.eval().to(self.device), [scene.image for scene in scenes])
        values = average_precision(match(found, [scene.target() for scene in scenes]))
        return float(values[0]), float(values.mean())

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights in float16, on the CPU."""
        averaged: Any = self.average.module
        state = averaged.state_dict()
        return {
            key: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous().clone()
            for key, value in state.items()
        }

    def state(self) -> dict[str, Any]:
        """Everything a new trainer needs to go on; tensors, numbers, texts, lists and dicts only."""
        return {
            "precision": self.precision, "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "at": vars(self.at),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.at = Place(**state["at"])


def _check(recipe: DetectorRecipe, scenes: ComposedScenes) -> None:
    """Refuse a network that does not fit the scenes."""
    for key, here, there in (
        ("channels", recipe.network.channels, scenes.channels),
        ("classes", recipe.network.classes, len(scenes.class_names) - 1),
    ):
        if here != there:
            raise SpecError(f"network.{key} must be {there} for {scenes.name}, got {here}.")
