"""Quality against training time: images from checkpoints of one training, judged by the accuracy that they teach.

    python -m robustgen.benchmarks.time_to_quality RECIPE CHECKPOINT.pt [CHECKPOINT.pt ...] [--n 8000]

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


def main() -> None:
    """Draw, train, test, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--n", type=int, default=8000)
    given = parser.parse_args()
    tune_process()
    recipe = load_generator_recipe(given.recipe)
    batch = recipe.training.batch_size
    data = TrainingData.load(
        recipe.data.name, data_dir=None, validation=recipe.data.validation, seed=0, batch_size=batch, augment=()
    )
    test = load_data(recipe.data.name)
    held = RESULTS / "time_to_quality.json"
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
    print(store("time_to_quality", {"what": f"{given.n} images by 10 Heun steps", "rows": rows}))


if __name__ == "__main__":
    main()
