"""`robustgen generator train`: from a recipe to a generator with its card; can be interrupted anywhere."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from robustgen import durable
from robustgen.environment import pick_device
from robustgen.errors import RobustgenError
from robustgen.generator.card import GeneratorCard
from robustgen.generator.grid import sample_grid
from robustgen.generator.recipe import GeneratorRecipe, load_generator_recipe
from robustgen.generator.trainer import BANDS, GeneratorTrainer, make_objective
from robustgen.progress import Progress, Silent
from robustgen.ranks import Ranks
from robustgen.training.data import TrainingData
from robustgen.training.folder import CHECKPOINT_SECONDS, TrainingFolder, in_words, open_folder
from robustgen.training.trainer import resolve_precision

__all__ = ["GeneratorResult", "train_generator"]


@dataclass(frozen=True, kw_only=True)
class GeneratorResult:
    """What a training has come to.

    Attributes:
        recipe: what was trained.
        out: the folder.
        finished: False when the budget ended it; the same command goes on.
        images: shown so far.
        seconds: of this call.
        card: the generator's card; None unless finished.
        validation_loss: of the averaged weights; None unless finished.
    """

    recipe: GeneratorRecipe
    out: Path
    finished: bool
    images: int
    seconds: float
    card: Path | None = None
    validation_loss: float | None = None

    def lines(self) -> list[str]:
        """What there is to say at the end, for people."""
        name = self.recipe.name
        if not self.finished:
            shown = f"{self.images:,} of {self.recipe.training.images:,} images"
            return [f"{name}: {shown} shown; the same command goes on from {self.out}."]
        return [
            f"{name}: validation loss {self.validation_loss:.4f}",
            f"generator: {self.card}",
            f"draw from it: robustgen generator sample {self.card} --n 64 --out {name}.npz",
        ]


def train_generator(
    recipe: str | Path | GeneratorRecipe,
    *,
    out: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    budget_seconds: float | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> GeneratorResult:
    """Train a generator, or go on with a training that was interrupted.

    Guarantee: the same call after an interruption ends with the same weights, bit for bit, as one that was not
    interrupted, on the same machine with the same number of threads. Torch's global generator is left as found.

    Args:
        recipe: a bundled name, a file ending in .toml, or a recipe.
        out: folder for NAME.safetensors, NAME.json, NAME.png, metrics.jsonl, train.log, checkpoint.pt.
        data_dir: where data sets lie, as for `load_data`.
        device: "auto", "cpu", "cuda" or "mps".
        budget_seconds: stop after the step in which this call has taken so long; None for no limit.
        progress: told of every step.
        ranks: the processes that share the batch; None for this one alone.

    Raises:
        SpecError: the recipe is wrong or does not fit the data, or `out` cannot be written.
        ArtifactError: the data is missing.
        RecordError: `out` holds another training or other files.
        RobustgenError: the loss is not finite (the last checkpoint is kept), or the disk is full.
    """
    begun, ranks = time.monotonic(), ranks or Ranks()
    recipe = recipe if isinstance(recipe, GeneratorRecipe) else load_generator_recipe(recipe)
    where = pick_device(device)
    names = tuple(f"{recipe.name}.{kind}" for kind in ("safetensors", "json", "png"))
    opened = open_folder(Path(out), recipe, GeneratorRecipe.from_dict, progress or Silent(), names, ranks)
    data = _load_images(recipe, data_dir)
    devices = [torch.cuda.current_device()] if where.type == "cuda" else []
    with opened as folder, torch.random.fork_rng(devices=devices):
        checkpoint = folder.read_checkpoint()
        precision = checkpoint["precision"] if checkpoint else resolve_precision(recipe.training.precision, where)
        trainer = GeneratorTrainer(recipe, data, where, precision, ranks)
        if checkpoint:
            trainer.load_state(checkpoint)
        _open(trainer, folder)
        _run(trainer, folder, None if budget_seconds is None else begun + budget_seconds)
        result: dict[str, Any] = {}
        if trainer.finished and ranks.first:
            sample_grid(trainer.averaged_denoiser(), folder.path / f"{recipe.name}.png")
            loss = trainer.validation_loss()
            with folder.disk_errors():
                result = {"card": _write_generator(trainer, folder.path, loss), "validation_loss": loss}
            folder.note(f"{recipe.name} is finished: validation loss {loss:.4f}.")
    return GeneratorResult(
        recipe=recipe,
        out=folder.path,
        finished=trainer.finished,
        images=min(trainer.images, recipe.training.images),
        seconds=time.monotonic() - begun,
        **result,
    )


def _load_images(recipe: GeneratorRecipe, data_dir: Path | None) -> TrainingData:
    return TrainingData.load(
        recipe.data.name,
        data_dir=data_dir,
        validation=recipe.data.validation,
        images=recipe.data.images,
        seed=recipe.seed,
        batch_size=recipe.training.batch_size,
        augment=(),
    )


def _open(trainer: GeneratorTrainer, folder: TrainingFolder) -> None:
    """Say where the training starts, and bring the metrics into line with it."""
    if not trainer.ranks.first:
        return
    folder.write_metrics(trainer.at.history)
    settings, at = trainer.settings, trainer.at
    if trainer.finished:
        folder.note(f"{trainer.recipe.name} is trained already; its files are written again.")
        return
    begins = f"goes on after step {at.step}" if at.step else "begins"
    threads = f", {torch.get_num_threads()} threads" if trainer.device.type == "cpu" else ""
    weights = sum(parameter.numel() for parameter in trainer.network.parameters())
    folder.note(
        f"{trainer.recipe.name} {begins}: {settings.steps} steps of {settings.batch_size} images, {weights:,} weights, "
        f"{len(trainer.data.x)} training images, {trainer.precision} on {trainer.device}{threads}."
    )


def _run(trainer: GeneratorTrainer, folder: TrainingFolder, deadline: float | None) -> None:
    """Steps until the end or the deadline; a checkpoint every two minutes, metrics and pictures now and then."""
    at, total, first = trainer.at, trainer.settings.steps, trainer.ranks.first
    every = max(1, trainer.settings.metrics_images // trainer.settings.batch_size)
    saved = pictured = time.monotonic()
    line_begun = (at.step, at.seconds)
    speed = _Speed(trainer)
    folder.progress.start(trainer.recipe.name, total)
    while at.step < total:
        loss = _step(trainer, folder)
        now = time.monotonic()
        over = deadline is not None and trainer.ranks.from_first(now >= deadline)
        if at.step % every == 0 or at.step == total:
            images = (at.step - line_begun[0]) * trainer.settings.batch_size
            line = trainer.line(images / max(at.seconds - line_begun[1], 1e-9))
            line_begun = (at.step, at.seconds)
            if first:
                folder.note(describe(line))
                folder.write_metrics(at.history)
        if first and (over or at.step == total or now - saved >= CHECKPOINT_SECONDS):
            folder.write_checkpoint(trainer.state())
            saved = now
        if first and now - pictured >= trainer.settings.grid_seconds:
            sample_grid(trainer.averaged_denoiser(), folder.path / f"{trainer.recipe.name}.png")
            pictured = now
        folder.progress.advance(at.step, speed.describe(loss))
        if over:
            if first and at.step < total:
                folder.note(f"the budget is used after {trainer.images:,} images; the same command goes on.")
            return


def _step(trainer: GeneratorTrainer, folder: TrainingFolder) -> float:
    """One step, its seconds counted; a loss that is not finite is noted and ends the training."""
    begun = time.monotonic()
    try:
        loss = trainer.step()
    except RobustgenError as error:
        if trainer.ranks.first:
            folder.note(str(error))
        raise RobustgenError(f"{error} The last good checkpoint is kept in {folder.path}.") from error
    trainer.at.seconds += time.monotonic() - begun
    return loss


def _write_generator(trainer: GeneratorTrainer, folder: Path, validation_loss: float) -> Path:
    """Weights and card of a finished training; returns the card's path."""
    recipe, dataset = trainer.recipe, trainer.data.dataset
    content = save_safetensors(trainer.weights())
    durable.replace(folder / f"{recipe.name}.safetensors", content)
    figure = {
        "metric": "validation_loss",
        "value": validation_loss,
        "n": len(trainer.data.x_validation),
        "protocol": f"the training loss on {trainer.data.validation}, one noise an image, {trainer.precision}",
    }
    card = GeneratorCard(
        name=recipe.name,
        description=recipe.description,
        kind=recipe.objective.kind,
        objective=asdict(make_objective(recipe, trainer.data.x)),
        network=recipe.network.to_dict(),
        shape=dataset.shape,
        classes=trainer.classes,
        class_names=dataset.class_names if trainer.classes else (),
        augmented=trainer.augmentation is not None,
        weights=f"{recipe.name}.safetensors",
        sha256=sha256(content).hexdigest(),
        data=recipe.data.name,
        licence=recipe.licence,
        source=f"robustgen generator train {recipe.name} (seed {recipe.seed}, torch {torch.__version__})",
        training={
            "images": recipe.training.images,
            "training_images": len(trainer.data.x),
            "held_out": trainer.data.validation,
            "held_out_images": len(trainer.data.x_validation),
            "split": "train",
            "seconds": round(trainer.at.seconds),
            "precision": trainer.precision,
            "device": str(trainer.device),
        },
        figures=(figure,),
    )
    path = folder / f"{recipe.name}.json"
    card.save(path)
    return path


class _Speed:
    """Images a second since this process took over, and what is left at that pace."""

    def __init__(self, trainer: GeneratorTrainer) -> None:
        self._trainer, self._first, self._begun = trainer, trainer.at.step, time.monotonic()

    def describe(self, loss: float) -> str:
        trainer = self._trainer
        per_second = max(trainer.at.step - self._first, 1) / max(time.monotonic() - self._begun, 1e-9)
        left = (trainer.settings.steps - trainer.at.step) / per_second
        images = per_second * trainer.settings.batch_size
        return f"loss {loss:.3f}, {images:,.0f} images/s, {in_words(left)} left"


def describe(line: dict[str, Any]) -> str:
    """A line of metrics in words, with the loss of each sigma band."""
    edges = ["0", *(f"{edge:g}" for edge in BANDS), "inf"]
    bands = ", ".join(
        f"{low}-{high}: {loss:.3f}"
        for low, high, loss in zip(edges, edges[1:], line["loss_by_band"], strict=False)
        if loss is not None
    )
    return (
        f"{line['images']:,} images: loss {line['loss']:.4f} (by sigma {bands}), "
        f"validation {line['validation_loss']:.4f}, {line['images_per_second']:,.0f} images/s"
    )
