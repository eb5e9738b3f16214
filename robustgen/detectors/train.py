"""`robustgen detector train`: from a recipe to a detector with its card, in steps that can be interrupted anywhere."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from robustgen.cards import Card
from robustgen.data import load_data
from robustgen.detectors.detector import TINY
from robustgen.detectors.recipe import DetectorRecipe, load_detector_recipe
from robustgen.detectors.trainer import DetectorTrainer, training_scenes
from robustgen.environment import pick_device
from robustgen.judge import strict_float32
from robustgen.progress import Progress, Silent
from robustgen.ranks import Ranks
from robustgen.training.folder import CHECKPOINT_SECONDS, TrainingFolder, in_words, open_folder
from robustgen.training.trainer import resolve_precision

__all__ = ["DetectorResult", "train_detector"]


@dataclass(frozen=True, kw_only=True)
class DetectorResult:
    """What a training has come to.

    Attributes:
        recipe: what was trained.
        out: the folder.
        finished: False when the budget ended it; the same command goes on.
        steps: done so far.
        card: the detector's card; None unless finished.
        ap50, ap: on scenes of held-out pictures, at IoU 0.5 and over ten thresholds; None unless finished.
    """

    recipe: DetectorRecipe
    out: Path
    finished: bool
    steps: int
    card: Path | None = None
    ap50: float | None = None
    ap: float | None = None

    def lines(self) -> list[str]:
        """What there is to say at the end, for people."""
        name = self.recipe.name
        if self.card is None:
            done = f"{self.steps} of {self.recipe.training.steps} steps done"
            return [f"{name}: {done}; the same command goes on from {self.out}."]
        assert self.ap50 is not None
        assert self.ap is not None
        return [
            f"{name}: on validation scenes AP50 {100 * self.ap50:.1f} %, AP {100 * self.ap:.1f} %",
            f"detector: {self.card}",
            f"make its objects vanish: robustgen patch vanish {self.card}",
        ]


def train_detector(
    recipe: str | Path | DetectorRecipe,
    *,
    out: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    budget_seconds: float | None = None,
    progress: Progress | None = None,
) -> DetectorResult:
    """Train a detector, or go on with a training that was interrupted.

    Guarantee: the same call after an interruption, kill -9 included, ends with the same weights, bit for bit, as one
    that was not interrupted, on the same machine with the same number of threads. Torch's global generator is left as
    found.

    Args:
        recipe: a bundled name, a file ending in .toml, or a recipe.
        out: folder for NAME.safetensors, NAME.json, metrics.jsonl, train.log, checkpoint.pt.
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
    recipe = recipe if isinstance(recipe, DetectorRecipe) else load_detector_recipe(recipe)
    where = pick_device(device)
    scenes, validation = training_scenes(recipe, load_data(recipe.data.name, data_dir=data_dir, split="train"))
    names = (f"{recipe.name}.safetensors", f"{recipe.name}.json")
    opened = open_folder(Path(out), recipe, DetectorRecipe.from_dict, progress or Silent(), names, Ranks())
    devices = [torch.cuda.current_device()] if where.type == "cuda" else []
    with opened as folder, torch.random.fork_rng(devices=devices), strict_float32():
        checkpoint = folder.read_checkpoint()
        precision = checkpoint["precision"] if checkpoint else resolve_precision(recipe.training.precision, where)
        trainer = DetectorTrainer(recipe, scenes, validation, where, precision)
        if checkpoint:
            trainer.load_state(checkpoint)
        _open(trainer, folder)
        _run(trainer, folder, None if budget_seconds is None else begun + budget_seconds)
        result: dict[str, Any] = {
            "recipe": recipe,
            "out": folder.path,
            "finished": trainer.finished,
            "steps": trainer.at.step,
        }
        if not trainer.finished:
            return DetectorResult(**result)
        ap50, ap = trainer.validate()
        return DetectorResult(**result, card=_write(trainer, folder, ap50, ap), ap50=ap50, ap=ap)


def _open(trainer: DetectorTrainer, folder: TrainingFolder) -> None:
    """Say where the training starts, and bring the metrics into line with it."""
    folder.write_metrics(trainer.at.history)
    if trainer.finished:
        folder.note(f"{trainer.recipe.name} is trained already; its files are written again.")
        return
    begins = f"goes on after step {trainer.at.step}" if trainer.at.step else "begins"
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    folder.note(
        f"{trainer.recipe.name} {begins}: {trainer.settings.steps} steps of {trainer.settings.batch_size} scenes of "
        f"{len(trainer.scenes.pool)} pictures, {weights:,} weights, {trainer.precision} on "
        f"{trainer.device}."
    )


def _run(trainer: DetectorTrainer, folder: TrainingFolder, deadline: float | None) -> None:
    """Steps until the end or the deadline; a checkpoint every two minutes, metrics now and then."""
    at, total, first, begun = trainer.at, trainer.settings.steps, trainer.at.step, time.monotonic()
    saved = ticked = begun
    folder.progress.start(trainer.recipe.name, total)
    while at.step < total:
        loss = trainer.step()
        now = time.monotonic()
        at.seconds, ticked = at.seconds + now - ticked, now
        if trainer.due:
            line = trainer.line()
            folder.note(
                f"step {line['step']}: loss {line['loss']:.3f}, validation AP50 {100 * line['ap50']:.1f} %, AP "
                f"{100 * line['ap']:.1f} %, {line['seconds']:.0f} s"
            )
            folder.write_metrics(at.history)
        over = deadline is not None and now >= deadline
        if over or at.step == total or now - saved >= CHECKPOINT_SECONDS:
            folder.write_checkpoint(trainer.state())
            saved = now
        ticked = time.monotonic() if trainer.due else ticked
        left = (total - at.step) * (now - begun) / (at.step - first)
        folder.progress.advance(at.step, f"loss {loss:.3f}, {in_words(left)} left")
        if over and at.step < total:
            folder.note(f"the budget is used after step {at.step} of {total}; the same command goes on.")
            return


def _write(trainer: DetectorTrainer, folder: TrainingFolder, ap50: float, ap: float) -> Path:
    """Weights and card of a finished training; returns the card's path."""
    recipe, scenes = trainer.recipe, trainer.scenes
    content = save_safetensors(trainer.weights())
    folder.write(f"{recipe.name}.safetensors", content)
    n = len(trainer.validation)
    what = f"on {n} scenes of {len(trainer.validation.pool)} training pictures held out, COCO's 101 points"
    figures: list[dict[str, Any]] = [
        {"metric": "ap50", "value": ap50, "n": n, "protocol": f"at IoU 0.5, {what}"},
        {"metric": "ap", "value": ap, "n": n, "protocol": f"mean over IoU 0.5 to 0.95, {what}"},
    ]
    card = Card(
        name=recipe.name,
        title=recipe.description.rstrip("."),
        architecture=TINY,
        description=recipe.description,
        options=asdict(recipe.network),
        weights=f"{recipe.name}.safetensors",
        sha256=sha256(content).hexdigest(),
        channels=scenes.channels,
        classes=len(scenes.class_names),
        class_names=scenes.class_names,
        licence=recipe.licence,
        source=f"robustgen detector train {recipe.name} (seed {recipe.seed}, torch {torch.__version__}, "
        f"{trainer.precision})",
        data=recipe.data.name,
        kind="standard",
        figures=tuple(figures),
    )
    path = folder.path / f"{recipe.name}.json"
    with folder.disk_errors():
        draft = path.with_name(f"{path.name}.tmp")
        card.save(draft)
        draft.replace(path)
    folder.note(f"{recipe.name} is finished: AP50 {100 * ap50:.1f} %, AP {100 * ap:.1f} %.")
    return path
