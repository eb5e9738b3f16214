"""Run the arms of a table: generator, images, classifiers, attacks; whatever is finished is never done again.

    OUT/generators/NAME[-unconditional]/    trained on the same real images as the classifiers
    OUT/images/NAME[-unconditional]-SAMPLER-N.npz
    OUT/labeller/
    OUT/classifiers/HASH-seed/              one training; HASH names everything it depends on
    OUT/runs/HASH-seed-best, ...-last/      evaluations that `robustgen verify` can check

Arms that ask for the same training share it, within a table and between tables with one OUT. So do processes: the same
command typed twice runs two trainings at a time, and each process ends with the whole table.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robustgen.api import evaluate
from robustgen.environment import pick_device
from robustgen.errors import unknown_name
from robustgen.generator.load import load_generator
from robustgen.generator.recipe import GeneratorRecipe, load_generator_recipe
from robustgen.generator.sample import SampleSpec, sample_to_file
from robustgen.generator.samplers import parse_sampler
from robustgen.generator.train import train_generator
from robustgen.progress import Progress, Silent
from robustgen.reproduce.experiment import WHICH, Arm, Scale, Table
from robustgen.reproduce.quality import ImageDistance, image_distance
from robustgen.reproduce.sharing import in_turn
from robustgen.runs import read_examples
from robustgen.training.recipe import Recipe, load_recipe
from robustgen.training.train import train

__all__ = ["Outcome", "Runner", "by_arm"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One training and what its weights withstand.

    Attributes:
        arm, seed: which.
        best_epoch, epochs: where the best weights stand.
        clean, robust: by "best" and, where the table is about them, "last" weights: one truth value a test image.
        seconds: of training and attacks.
    """

    arm: str
    seed: int
    best_epoch: int
    epochs: int
    clean: dict[str, list[bool]]
    robust: dict[str, list[bool]]
    seconds: float


class Runner:
    """A table at a scale, in a folder.

    Args:
        table, scale: what is run.
        out: the folder.
        data_dir: where data sets lie, as for `load_data`.
        device: "auto", "cpu", "cuda" or "mps".
        progress: told what is going on.
        deadline: `time.monotonic()` after which nothing new is begun, and trainings stop after a step; None for none.

    Raises:
        SpecError: an arm asks for a generator that the scale does not have, or a recipe cannot be read.
    """

    def __init__(
        self,
        table: Table,
        scale: Scale,
        out: Path,
        *,
        data_dir: Path | None = None,
        device: str = "auto",
        progress: Progress | None = None,
        deadline: float | None = None,
    ) -> None:
        self.table, self.scale, self.out, self.data_dir, self.device = table, scale, out, data_dir, device
        self.progress, self.deadline = progress or Silent(), deadline
        self.recipe = load_recipe(scale.recipe)
        for arm in table.arms:
            if arm.generator not in scale.generators:
                raise unknown_name("generator of this scale", arm.generator, scale.generators)

    def outcomes(self) -> Iterator[Outcome]:
        """All arms of the first seed first, but for those that another process is at; ends where the deadline is."""
        tasks = [(arm, seed) for seed in self.scale.seeds for arm in self.table.arms]
        for _, outcome in in_turn(tasks, lambda task: self._outcome(*task), self._announce):
            yield outcome

    def _announce(self, task: tuple[Arm, int]) -> None:
        self.progress.note(f"{self.table.name}: {task[0].name}, seed {task[1]}")

    def classifier_recipe(self, arm: Arm, seed: int) -> Recipe:
        """What an arm trains; its generated images by the name that they have in OUT."""
        training = self.recipe.training
        training = replace(
            training,
            epochs=max(1, round(arm.epochs * training.epochs)),
            augment=(*training.augment, *arm.augment),
        )
        generated = f"{self.images_path(arm)}:{self.scale.share:g}" if arm.ratio else ""
        changed = replace(self.recipe, training=training).changed(generated=generated, seed=seed)
        return changed if arm.conditional or not arm.ratio else changed.changed(labels=str(self.labeller_card))

    def generator_recipe(self, arm: Arm) -> GeneratorRecipe:
        """What an arm's images come from: it sees the real images that the classifier sees, and no others."""
        mine, theirs = load_generator_recipe(self.scale.generators[arm.generator]), self.recipe.data
        data = replace(
            mine.data, name=theirs.name, validation=theirs.validation, images=theirs.images, conditional=arm.conditional
        )
        return replace(mine, data=data)

    def images_needed(self, arm: Arm) -> int:
        """How many images an arm's file holds."""
        return max(1, round(arm.ratio * (self.recipe.data.images or self.scale.images)))

    def key(self, recipe: Recipe) -> str:
        """What a training is called in OUT."""
        return f"{_digest(recipe)}-{recipe.seed}"

    def _outcome(self, arm: Arm, seed: int) -> Outcome | None:
        """From the disk, or run; None where the deadline came first."""
        recipe = self.classifier_recipe(arm, seed)
        key = self.key(recipe)
        held = self.out / "outcomes" / f"{key}-{self.scale.plan}-{self.scale.n}.json"
        if held.is_file():
            known = Outcome(**{**json.loads(held.read_text(encoding="utf-8")), "arm": arm.name})
            if set(self.table.attacked) <= set(known.robust):  # another table may ask for less
                return known
        if arm.ratio and not self._prepare_images(arm):
            return None
        begun, folder = time.monotonic(), self.out / "classifiers" / key
        if (left := self._seconds_left()) is not None and left <= 0:
            return None
        result = train(
            recipe, out=folder, data_dir=self.data_dir, device=self.device, budget_seconds=left, progress=self.progress
        )
        if not result.finished:
            return None
        assert result.best_epoch is not None  # of a finished training
        clean, robust = {}, {}
        for which in self.table.attacked:
            clean[which], robust[which] = self._attack(folder, recipe, which, self.out / "runs" / f"{key}-{which}")
        outcome = Outcome(
            arm=arm.name, seed=seed, best_epoch=result.best_epoch, epochs=recipe.training.epochs,
            clean=clean, robust=robust, seconds=time.monotonic() - begun,
        )  # fmt: skip
        held.parent.mkdir(parents=True, exist_ok=True)
        draft = held.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        draft.replace(held)
        return outcome

    def _attack(self, folder: Path, recipe: Recipe, which: str, run: Path) -> tuple[list[bool], list[bool]]:
        """Right and robust, one truth value a test image."""
        weights = folder / (recipe.name + ("-last" if which == "last" else "") + ".safetensors")
        evaluate(
            str(folder / f"{recipe.name}.json"), recipe.data.name, recipe.training.threat, plan=self.scale.plan,
            n=self.scale.n, out=run, weights=weights, data_dir=self.data_dir, device=self.device,
            progress=self.progress,
        )  # fmt: skip
        examples = sorted(read_examples(run), key=lambda example: example.id)
        return [e.clean_prediction == e.label for e in examples], [e.robust for e in examples]

    def _prepare_images(self, arm: Arm) -> bool:
        """Generator, images and labeller of an arm; False where the deadline came first."""
        path, left = self.images_path(arm), self._seconds_left()
        if not path.is_file():
            recipe, folder = self.generator_recipe(arm), self.generator_folder(arm)
            trained = train_generator(
                recipe, out=folder, data_dir=self.data_dir, device=self.device, budget_seconds=left,
                progress=self.progress,
            )  # fmt: skip
            if not trained.finished:
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            generator = load_generator(str(folder / f"{recipe.name}.json"), device=pick_device(self.device))
            spec = SampleSpec(n=self.images_needed(arm))
            if not path.is_file():  # nor made by another process meanwhile
                sample_to_file(generator, parse_sampler(self.sampler(arm)), spec, path, progress=self.progress)
        if arm.conditional or self.labeller_card.is_file():
            return True
        labeller = load_recipe(self.scale.labeller)
        labeller = replace(labeller, data=self.recipe.data)
        return train(
            labeller, out=self.labeller_card.parent, data_dir=self.data_dir, device=self.device,
            budget_seconds=self._seconds_left(), progress=self.progress,
        ).finished  # fmt: skip

    def distances(self) -> dict[str, ImageDistance]:
        """Of the images of each arm from real ones, where the paper says it of its own (`fid`) and it is known here."""
        measured = {
            arm.name: image_distance(
                self.images_path(arm), self.recipe.data.name, data_dir=self.data_dir, device=pick_device(self.device)
            )
            for arm in self.table.arms
            if "fid" in arm.paper
        }
        return {name: distance for name, distance in measured.items() if distance is not None}

    def sampler(self, arm: Arm) -> str:
        """Of its generated images, as typed."""
        return arm.sampler or self.scale.sampler

    def generator_folder(self, arm: Arm) -> Path:
        """Where its generator is trained."""
        return self.out / "generators" / _source(arm)

    def images_path(self, arm: Arm) -> Path:
        """Its generated images."""
        sampler = "".join(c if c.isalnum() else "-" for c in self.sampler(arm))
        return self.out / "images" / f"{_source(arm)}-{sampler}-{self.images_needed(arm)}.npz"

    @property
    def labeller_card(self) -> Path:
        """The classifier that labels images without classes."""
        return self.out / "labeller" / f"{load_recipe(self.scale.labeller).name}.json"

    def _seconds_left(self) -> float | None:
        return None if self.deadline is None else self.deadline - time.monotonic()


def by_arm(found: list[Outcome]) -> dict[tuple[str, str], np.ndarray[Any, np.dtype[np.bool_]]]:
    """(arm, "best" or "last") -> (seeds, images), robust or not; seeds in their order."""
    arms, found = dict.fromkeys(outcome.arm for outcome in found), sorted(found, key=lambda outcome: outcome.seed)
    return {
        (arm, which): np.array([outcome.robust[which] for outcome in found if outcome.arm == arm])
        for arm in arms
        for which in WHICH
        if all(which in outcome.robust for outcome in found)
    }


def _source(arm: Arm) -> str:
    return arm.generator if arm.conditional else f"{arm.generator}-unconditional"


def _digest(recipe: Recipe) -> str:
    """Twelve letters that name everything a training depends on, but for the seed and where OUT lies."""
    content = recipe.to_dict()
    content.pop("seed")
    if content["generated"] is not None:
        content["generated"]["files"] = [Path(name).name for name in content["generated"]["files"]]
        content["generated"]["labels"] = content["generated"]["labels"] and "labeller"
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
