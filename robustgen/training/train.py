"""`robustgen train`: from a recipe to a classifier with its card, in steps that can be interrupted anywhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from robustgen.cards import Card
from robustgen.classifier import Classifier
from robustgen.environment import pick_device
from robustgen.errors import RecordError
from robustgen.fields import parse_duration
from robustgen.nets import build_network
from robustgen.progress import Progress, Silent
from robustgen.ranks import Ranks
from robustgen.training.data import TrainingData
from robustgen.training.folder import CHECKPOINT_SECONDS, TrainingFolder, in_words, open_folder
from robustgen.training.generated import GeneratedSource, load_sources
from robustgen.training.measure import clean_accuracy, pgd_accuracy
from robustgen.training.recipe import Recipe, list_recipes, load_recipe
from robustgen.training.trainer import Trainer, resolve_precision

__all__ = ["TrainResult", "list_recipes", "load_recipe", "parse_duration", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training has come to.

    Attributes:
        recipe: what was trained.
        out: the folder.
        finished: False when the budget ended it; the same command goes on.
        epochs: finished ones.
        seconds: of this call.
        weights, card: the classifier's files; None unless finished.
        clean_accuracy: of the classifier, on the validation images; None unless finished.
        pgd_accuracy: the same under PGD with 20 steps; None unless finished and there is a threat model.
        best_epoch: the epoch of the classifier, from 1; None unless finished.
    """

    recipe: Recipe
    out: Path
    finished: bool
    epochs: int
    seconds: float
    weights: Path | None = None
    card: Path | None = None
    clean_accuracy: float | None = None
    pgd_accuracy: float | None = None
    best_epoch: int | None = None

    def lines(self) -> list[str]:
        """What there is to say at the end, for people."""
        if not self.finished:
            return [f"{self.recipe.name}: {self.epochs} epochs done; the same command goes on from {self.out}."]
        assert self.clean_accuracy is not None
        figures = f"validation accuracy {100 * self.clean_accuracy:.1f} %"
        if self.pgd_accuracy is not None:
            figures += f", under PGD-20 {100 * self.pgd_accuracy:.1f} %"
        return [
            f"{self.recipe.name}: {figures} (epoch {self.best_epoch})",
            f"classifier: {self.card}",
            f"attack it: robustgen eval {self.card}",
        ]


def train(
    recipe: str | Path | Recipe,
    *,
    out: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    budget_seconds: float | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> TrainResult:
    """Train a classifier, or go on with a training that was interrupted.

    Guarantee: the same call after an interruption ends with the same weights, bit for bit, as one that was not
    interrupted, on the same machine with the same number of threads. Torch's global generator is left as found.

    Args:
        recipe: a bundled name, a file ending in .toml, or a recipe.
        out: folder for NAME.safetensors, NAME.json, NAME-last.safetensors, metrics.jsonl, train.log, checkpoint.pt.
        data_dir: where data sets lie, as for `load_data`.
        device: "auto", "cpu", "cuda" or "mps".
        budget_seconds: stop after the step in which this call has taken so long; None for no limit.
        progress: told of every step.
        ranks: the processes that share the batch; None for this one alone.

    Raises:
        SpecError: the recipe is wrong or does not fit the data or the generated images, or `out` cannot be written.
        ArtifactError: the data is missing.
        RecordError: `out` holds another training or other files.
        RobustgenError: the loss is not finite, or the disk is full.
    """
    begun, ranks = time.monotonic(), ranks or Ranks()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    where = pick_device(device)
    data = _load_images(recipe, data_dir)
    names = (f"{recipe.name}.safetensors", f"{recipe.name}.json")
    opened = open_folder(Path(out), recipe, Recipe.from_dict, progress or Silent(), names, ranks)
    devices = [torch.cuda.current_device()] if where.type == "cuda" else []
    with opened as folder, torch.random.fork_rng(devices=devices):
        checkpoint = folder.read_checkpoint()
        precision = checkpoint["precision"] if checkpoint else resolve_precision(recipe.training.precision, where)
        trainer = Trainer(recipe, data, where, precision, ranks)
        if checkpoint:
            _check_generated(data.generated, checkpoint["generated"], folder)
            trainer.load_state(checkpoint)
        _open(trainer, folder)
        deadline = None if budget_seconds is None else begun + budget_seconds
        _run(trainer, folder, deadline)
        result = TrainResult(
            recipe=recipe,
            out=folder.path,
            finished=trainer.at.finished,
            epochs=trainer.epoch,
            seconds=time.monotonic() - begun,
        )
        return _write_result(result, trainer, folder) if trainer.at.finished and ranks.first else result


def _load_images(recipe: Recipe, data_dir: Path | None) -> TrainingData:
    generated = recipe.generated
    return TrainingData.load(
        recipe.data.name,
        data_dir=data_dir,
        validation=recipe.data.validation,
        images=recipe.data.images,
        seed=recipe.seed,
        batch_size=recipe.training.batch_size,
        augment=recipe.training.augment,
        generated=() if generated is None else load_sources(generated.shares, labels=generated.labels),
    )


def _check_generated(sources: tuple[GeneratedSource, ...], held: list[str], folder: TrainingFolder) -> None:
    """Refuse to go on with files that are not those the training began with."""
    for source, digest in zip(sources, held, strict=True):
        if source.sha256 != digest:
            raise RecordError(
                f"{source.path} is not the file that {folder.path} began with (sha256 {source.sha256[:12]} here, "
                f"{digest[:12]} there). Name another folder."
            )


def _run(trainer: Trainer, folder: TrainingFolder, deadline: float | None) -> None:
    """Steps until the end or the deadline, with a checkpoint at every epoch's end and every two minutes."""
    at, session, first = trainer.at, _Session(trainer), trainer.ranks.first
    saved = ticked = time.monotonic()
    folder.progress.start(trainer.recipe.name, trainer.total)
    while at.step < trainer.total:
        loss = trainer.step()
        event = trainer.guard()
        now = time.monotonic()
        at.seconds, ticked = at.seconds + now - ticked, now
        if not event and trainer.at_epoch_end:
            event = _epoch_line(trainer, trainer.finish_epoch())
        if event and first:
            folder.note(event)
            folder.write_metrics(at.history)
        over = deadline is not None and trainer.ranks.from_first(now >= deadline)
        if first and (over or at.finished or now - saved >= CHECKPOINT_SECONDS):
            folder.write_checkpoint(trainer.state())
            saved = ticked = time.monotonic()
        folder.progress.advance(at.step, session.describe(loss))
        if over and not at.finished and first:
            folder.note(f"the budget is used after step {at.step} of {trainer.total}; the same command goes on.")
        if over:
            return


def _open(trainer: Trainer, folder: TrainingFolder) -> None:
    """Say where the training starts, and bring the metrics into line with it."""
    at = trainer.at
    if not trainer.ranks.first:
        return
    folder.write_metrics(at.history)
    if at.finished:
        folder.note(f"{trainer.recipe.name} is trained already; its files are written again.")
        return
    begins = f"goes on after step {at.step}" if at.step else "begins"
    threads = f", {torch.get_num_threads()} threads" if trainer.device.type == "cpu" else ""
    folder.note(
        f"{trainer.recipe.name} {begins}: {trainer.total} steps in {trainer.settings.epochs} epochs, "
        f"{_images(trainer.data)}, {trainer.precision} on {trainer.device}{threads}."
    )


def _images(data: TrainingData) -> str:
    """What is trained on, in words."""
    parts = [f"{data.batch_size - sum(data.generated_rows)} a step of {len(data.x)} images"]
    parts += [
        f"{rows} a step of {len(source)} generated ones ({source.path.name})"
        for rows, source in zip(data.generated_rows, data.generated, strict=True)
    ]
    return ", ".join(parts)


class _Session:
    """Speed since this process took over."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._first, self._begun = trainer, trainer.at.step, time.monotonic()

    def describe(self, loss: float) -> str:
        trainer = self._trainer
        elapsed = max(time.monotonic() - self._begun, 1e-9)
        per_second = max(trainer.at.step - self._first, 1) / elapsed
        left = (trainer.total - trainer.at.step) / per_second
        epoch = min(trainer.epoch + 1, trainer.settings.epochs)
        return (
            f"epoch {epoch}/{trainer.settings.epochs}, loss {loss:.3f}, "
            f"{per_second * trainer.data.batch_size:,.0f} images/s, {in_words(left)} left"
        )


def _write_result(result: TrainResult, trainer: Trainer, folder: TrainingFolder) -> TrainResult:
    """The files of the classifier, and its figures in float32."""
    recipe, best = trainer.recipe, trainer.best
    assert best is not None  # every epoch was measured
    content = save_safetensors(best["state"])
    folder.write(f"{recipe.name}-last.safetensors", save_safetensors(trainer.weights()))
    weights = folder.write(f"{recipe.name}.safetensors", content)
    card = _card(trainer, sha256(content).hexdigest())
    network = build_network(recipe.network.architecture, **recipe.network.options)
    network.load_state_dict(best["state"])
    classifier = Classifier(network, card).to(trainer.device)
    x, y, threat = trainer.x_validation, trainer.y_validation, trainer.method.threat
    clean = clean_accuracy(classifier, x, y)
    pgd = None if threat is None else pgd_accuracy(classifier, x, y, threat)
    common = {
        "n": len(x),
        "data": f"{recipe.data.name}: {trainer.data.validation}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "torch": torch.__version__,
    }
    figures: list[dict[str, Any]] = [
        {"metric": "clean_accuracy", "value": clean, "protocol": "argmax of the logits, float32", **common}
    ]
    if pgd is not None:
        protocol = f"PGD, margin loss, 20 steps of 0.2 eps from the image, every iterate counts, {threat}, float32"
        figures.append({"metric": "robust_accuracy", "value": pgd, "protocol": protocol, **common})
    card = replace(card, figures=tuple(figures))
    path = folder.path / f"{recipe.name}.json"
    with folder.disk_errors():
        draft = path.with_name(f"{path.name}.tmp")
        card.save(draft)
        draft.replace(path)
    robust = "" if pgd is None else f", {pgd:.1%} under PGD-20 ({threat})"
    folder.note(f"{weights}: epoch {best['epoch']}, {clean:.1%} of {len(x)} validation images right{robust}.")
    return replace(result, weights=weights, card=path, clean_accuracy=clean, pgd_accuracy=pgd, best_epoch=best["epoch"])


def _card(trainer: Trainer, digest: str) -> Card:
    recipe, settings, dataset = trainer.recipe, trainer.settings, trainer.data.dataset
    trained = settings.method != "standard"
    return Card(
        name=recipe.name,
        title=recipe.description.rstrip(".") or recipe.name,
        architecture=recipe.network.architecture,
        description=recipe.description,
        options=recipe.network.options,
        weights=f"{recipe.name}.safetensors",
        sha256=digest,
        mean=recipe.data.mean,
        std=recipe.data.std,
        channels=dataset.shape[0],
        size=dataset.shape[1:],
        classes=dataset.classes,
        class_names=dataset.class_names,
        licence=recipe.licence,
        source=_source(trainer),
        threat=settings.threat if trained else None,
        sigma=getattr(trainer.method, "sigma", None),
        data=recipe.data.name,
        kind="robust" if trained else "standard",
    )


def _source(trainer: Trainer) -> str:
    """The commands that made it, and with what."""
    recipe, generated = trainer.recipe, trainer.data.generated
    made = [source.provenance["command"] for source in generated if "command" in source.provenance]
    asked = f"robustgen train {recipe.name}"
    if generated:
        asked += " --generated " + ",".join(f"{source.path.name}:{source.share:g}" for source in generated)
    commands = " && ".join([*made, asked])
    return f"{commands} (seed {recipe.seed}, torch {torch.__version__}, {trainer.precision})"


def _epoch_line(trainer: Trainer, line: dict[str, Any]) -> str:
    clean = "" if line["clean_accuracy"] is None else f"validation clean {line['clean_accuracy']:.1%}, "
    robust = "" if line["pgd_accuracy"] is None else f"PGD {line['pgd_accuracy']:.1%}, "
    return (
        f"epoch {line['epoch']}/{trainer.settings.epochs}: loss {line['loss']:.4f}, {clean}{robust}"
        f"{line['seconds']:.1f} s, {line['images_per_second']:,.0f} images/s"
    )
