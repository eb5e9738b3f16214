"""Quality against training time: images from checkpoints of one training, judged by the accuracy that they teach.

    python -m robustgen.benchmarks.time_to_quality RECIPE CHECKPOINT.pt [CHECKPOINT.pt ...] [--n 8000]
    python -m robustgen.benchmarks.time_to_quality fmnist-edm --draw docs/fmnist-edm-time.png

Checkpoints are copies of checkpoint.pt, taken while `robustgen generator train` ran. Each row has the images shown, the
seconds of training, the validation loss, and the classification accuracy score of n images by 10 Heun steps; the budget
of the classifier is the same for all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from robustgen.benchmarks.harness import RESULTS, store
from robustgen.data import load_data
from robustgen.environment import tune_process
from robustgen.generator.cas import classification_accuracy_score
from robustgen.generator.denoiser import to_uint8
from robustgen.generator.draw import draw
from robustgen.generator.recipe import load_generator_recipe
from robustgen.generator.samplers import Heun
from robustgen.generator.trainer import GeneratorTrainer
from robustgen.ranks import Ranks
from robustgen.training.data import TrainingData

NAME = "time_to_quality"


def main() -> None:
    """Draw, train, test, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--n", type=int, default=8000)
    parser.add_argument("--draw", type=Path, help="a picture of what is stored")
    given = parser.parse_args()
    tune_process()
    if given.checkpoints:
        measure(given)
    if given.draw:
        draw_curve(given.draw, given.recipe)


def measure(given: argparse.Namespace) -> None:
    """Draw from each checkpoint, train a classifier, test it; each row is stored."""
    recipe = load_generator_recipe(given.recipe)
    batch = recipe.training.batch_size
    data = TrainingData.load(
        recipe.data.name, data_dir=None, validation=recipe.data.validation, seed=0, batch_size=batch, augment=()
    )
    test = load_data(recipe.data.name)
    held = RESULTS / f"{NAME}.json"
    rows = json.loads(held.read_text())["rows"] if held.exists() else []
    for path in given.checkpoints:
        state = torch.load(path, weights_only=True)
        trainer = GeneratorTrainer(recipe, data, torch.device("cpu"), state["precision"], Ranks())
        trainer.load_state(state)
        labels = torch.arange(given.n) % trainer.classes
        x = draw(trainer.averaged_denoiser(), Heun(steps=10), range(given.n), labels, seed=1)
        score = classification_accuracy_score(to_uint8(x), labels, test)
        row = {
            "recipe": recipe.name,
            "images": trainer.images,
            "seconds": trainer.at.seconds,
            "validation_loss": trainer.validation_loss(),
            "n": given.n,
            "cas": asdict(score),
        }
        print(row, flush=True)
        rows = [other for other in rows if (other["recipe"], other["images"]) != (recipe.name, trainer.images)] + [row]
        rows.sort(key=lambda one: (one["recipe"], one["images"]))
        print(store(NAME, {"what": f"{given.n} images by 10 Heun steps", "rows": rows}))


def draw_curve(path: Path, recipe: str) -> None:
    """Accuracy on real test images, and loss on held-out images, against minutes of training."""
    from matplotlib.figure import Figure

    stored = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
    rows = [row for row in stored["rows"] if row["recipe"] == recipe]
    minutes = [row["seconds"] / 60 for row in rows]
    scores = [row["cas"]["accuracy"] for row in rows]
    value, low, high = ([100 * score[key] for score in scores] for key in ("value", "low", "high"))
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    below, above = ([abs(v - end) for v, end in zip(value, ends, strict=True)] for ends in (low, high))
    accuracy.errorbar(minutes, value, yerr=[below, above], fmt="o-", capsize=3, color="#0072B2")
    accuracy.set_ylabel("accuracy on real test images, %")
    loss.plot(minutes, [row["validation_loss"] for row in rows], "o-", color="#D55E00")
    loss.set_ylabel("loss on held-out images")
    for axes in (accuracy, loss):
        axes.set_xlabel("minutes of training")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{recipe}: a classifier trained on {stored['what']}", fontsize=10)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
