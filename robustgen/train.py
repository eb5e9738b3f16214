"""`robustgen train`: from a recipe to a classifier with its card, in steps that can be interrupted anywhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from robustgen.adversarial_training import clean_accuracy, pgd_accuracy
from robustgen.cards import Card
from robustgen.classifiers import Classifier
from robustgen.environment import pick_device
from robustgen.errors import RecordError, RobustgenError, SpecError
from robustgen.nets import build_network
from robustgen.progress import Progress, Silent
from robustgen.recipe import Recipe, list_recipes, load_recipe, parse_duration
from robustgen.trainer import Trainer, resolve_precision
from robustgen.training_data import TrainingData

__all__ = ["TrainResult", "list_recipes", "load_recipe", "parse_duration", "train"]

CHECKPOINT_SECONDS = 120.0  # between two checkpoints, at most


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

    Raises:
        SpecError: the recipe is wrong or does not fit the data, or `out` cannot be written.
        ArtifactError: the data is missing.
        RecordError: `out` holds another training or other files.
        RobustgenError: the loss is not finite, or the disk is full.
    """
    begun = time.monotonic()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    where = pick_device(device)
    folder = _Folder(Path(out), recipe, progress or Silent())
    data = TrainingData.load(
        recipe.data.name,
        data_dir=data_dir,
        validation=recipe.data.validation,
        seed=recipe.seed,
        batch_size=recipe.training.batch_size,
        augment=recipe.training.augment,
    )
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if where.type == "cuda" else []):
        checkpoint = folder.read_checkpoint()
        precision = checkpoint["precision"] if checkpoint else resolve_precision(recipe.training.precision, where)
        trainer = Trainer(recipe, data, where, precision)
        if checkpoint:
            trainer.load_state(checkpoint)
        folder.open(trainer)
        deadline = None if budget_seconds is None else begun + budget_seconds
        _run(trainer, folder, deadline)
        result = TrainResult(
            recipe=recipe,
            out=folder.path,
            finished=trainer.at.finished,
            epochs=trainer.epoch,
            seconds=time.monotonic() - begun,
        )
        return _write_result(result, trainer, folder) if trainer.at.finished else result


def _run(trainer: Trainer, folder: _Folder, deadline: float | None) -> None:
    """Steps until the end or the deadline, with a checkpoint at every epoch's end and every two minutes."""
    at, session = trainer.at, _Session(trainer)
    saved = ticked = time.monotonic()
    folder.progress.start(trainer.recipe.name, trainer.total)
    while not at.finished:
        loss = trainer.step()
        event = trainer.guard()
        now = time.monotonic()
        at.seconds, ticked = at.seconds + now - ticked, now
        if event:
            folder.note(event)
            folder.write_metrics(at.history)
        elif trainer.at_epoch_end:
            line = trainer.finish_epoch()
            folder.note(_epoch_line(trainer, line))
            folder.write_metrics(at.history)
        over = deadline is not None and now >= deadline
        if trainer.at_epoch_end or over or now - saved >= CHECKPOINT_SECONDS:
            folder.write_checkpoint(trainer.state())
            saved = ticked = time.monotonic()
        folder.progress.advance(at.step, session.describe(loss))
        if over and not at.finished:
            folder.note(f"the budget is used after step {at.step} of {trainer.total}; the same command goes on.")
            return


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
            f"{per_second * trainer.data.batch_size:,.0f} images/s, {_minutes(left)} left"
        )


class _Folder:
    """The folder of one training: refuses another's, and writes each file as a whole."""

    def __init__(self, path: Path, recipe: Recipe, progress: Progress) -> None:
        self.path, self.recipe, self.progress = path.expanduser(), recipe, progress
        self._check()

    def _check(self) -> None:
        held = self.path / "recipe.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if held.is_file():
                other = Recipe.from_dict(json.loads(held.read_text(encoding="utf-8")))
            elif own := [name for name in self._own_files() if (self.path / name).exists()]:
                raise RecordError(f"--out: {self.path} holds {own[0]}, but no recipe.json; name another folder.")
            else:
                self._replace("recipe.json", (json.dumps(self.recipe.to_dict(), indent=2) + "\n").encode())
                return
        except (ValueError, SpecError) as error:
            raise RecordError(f"{held} cannot be read ({error}); name another folder.") from error
        except OSError as error:
            raise SpecError(f"--out: {self.path} cannot be written: {error.strerror}.") from error
        if differences := self.recipe.differences(other):
            raise RecordError(
                f"--out: {self.path} holds another training: {'; '.join(differences)}. Name another folder."
            )

    def _own_files(self) -> tuple[str, ...]:
        name = self.recipe.name
        return "checkpoint.pt", "metrics.jsonl", "train.log", f"{name}.safetensors", f"{name}.json"

    def open(self, trainer: Trainer) -> None:
        """Say where the training starts, and bring the metrics into line with it."""
        at = trainer.at
        self.write_metrics(at.history)
        if at.finished:
            self.note(f"{self.recipe.name} is trained already; its files are written again.")
            return
        begins = f"goes on after step {at.step}" if at.step else "begins"
        threads = f", {torch.get_num_threads()} threads" if trainer.device.type == "cpu" else ""
        self.note(
            f"{self.recipe.name} {begins}: {trainer.total} steps in {trainer.settings.epochs} epochs, "
            f"{len(trainer.data.x)} images, {trainer.precision} on {trainer.device}{threads}."
        )

    def note(self, text: str) -> None:
        """Tell the progress and train.log."""
        self.progress.note(text)
        with self.disk_errors(), (self.path / "train.log").open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n")

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """metrics.jsonl holds exactly the history, also after a return to an earlier state."""
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in history).encode())

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; a crash leaves the old or the new one."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.write("checkpoint.pt", buffer.getvalue())

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint, or None where there is none yet."""
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch promises no set of types for a damaged file
            raise RecordError(
                f"{path} is damaged ({type(error).__name__}); remove the folder to begin again."
            ) from error
        return state

    def write(self, name: str, content: bytes) -> Path:
        """Write a file so that it is either the old or the new one."""
        with self.disk_errors():
            return self._replace(name, content)

    def _replace(self, name: str, content: bytes) -> Path:
        path, draft = self.path / name, self.path / f"{name}.tmp"
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return path

    @contextlib.contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn what the disk complains about into one sentence."""
        try:
            yield
        except OSError as error:
            raise RobustgenError(
                f"{self.path} cannot be written: {error.strerror}; the last checkpoint is kept."
            ) from error


def _write_result(result: TrainResult, trainer: Trainer, folder: _Folder) -> TrainResult:
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
        source=f"robustgen train {recipe.name} (seed {recipe.seed}, torch {torch.__version__}, {trainer.precision})",
        threat=settings.threat if trained else None,
        data=recipe.data.name,
        kind="robust" if trained else "standard",
    )


def _epoch_line(trainer: Trainer, line: dict[str, Any]) -> str:
    robust = "" if line["pgd_accuracy"] is None else f", PGD {line['pgd_accuracy']:.1%}"
    return (
        f"epoch {line['epoch']}/{trainer.settings.epochs}: loss {line['loss']:.4f}, "
        f"validation clean {line['clean_accuracy']:.1%}{robust}, "
        f"{line['seconds']:.1f} s, {line['images_per_second']:,.0f} images/s"
    )


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
