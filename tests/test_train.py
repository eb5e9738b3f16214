"""Training from end to end: it learns, it resumes bit for bit, it guards itself, and it keeps its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from robustgen.cards import Card
from robustgen.classifiers import load_classifier
from robustgen.durable import FolderLock
from robustgen.errors import BusyError, RecordError, RobustgenError, SpecError
from robustgen.threat import ThreatModel
from robustgen.training import train as train_module
from robustgen.training.data import TrainingData
from robustgen.training.measure import pgd_accuracy
from robustgen.training.recipe import Recipe, load_recipe
from robustgen.training.train import TrainResult, train
from robustgen.training.trainer import Trainer, learning_rate
from tests.helpers import assert_global_rng_untouched
from tests.training_helpers import Interrupted, interrupt_after, with_training, write_generated, write_recipe

ROOT = Path(__file__).resolve().parent.parent
LINF = "linf:0.1"
METHODS: dict[str, dict[str, Any]] = {
    "standard": {},
    "fgsm-rs": {"method": "fgsm-rs", "threat": LINF},
    "pgd-at": {"method": "pgd-at", "threat": LINF, "steps": 2, "rel_step": 0.6},
    "trades-awp": {"method": "trades", "threat": LINF, "steps": 1, "awp": 0.005, "options": {"beta": 2.0}},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Standard training on the toy data: 2 epochs of 13 steps."""
    return load_recipe(write_recipe(tmp_path))


def lines(result: TrainResult, event: str = "epoch") -> list[dict[str, Any]]:
    """Of metrics.jsonl."""
    held = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in held if line["event"] == event]


def weights(out: Path, name: str = "tiny") -> dict[str, Tensor]:
    """What a training has written."""
    return load_file(out / f"{name}.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def make_trainer(recipe: Recipe) -> Trainer:
    """A trainer that has done nothing yet."""
    settings = recipe.training
    data = TrainingData.load(
        recipe.data.name,
        data_dir=None,
        validation=recipe.data.validation,
        seed=recipe.seed,
        batch_size=settings.batch_size,
        augment=settings.augment,
    )
    return Trainer(recipe, data, torch.device("cpu"), "float32")


@pytest.mark.parametrize("method", METHODS)
def test_learns(recipe: Recipe, tmp_path: Path, method: str) -> None:
    """The loss falls, the classifier beats chance by far, and its card says the same when loaded and measured again."""
    with assert_global_rng_untouched():
        result = train(with_training(recipe, epochs=6, **METHODS[method]), out=tmp_path / "out")
    losses = list({line["epoch"]: line["loss"] for line in lines(result)}.values())  # the guard may repeat an epoch
    assert len(losses) == 6
    assert losses[-1] < 0.8 * losses[0]
    assert result.finished
    assert result.clean_accuracy is not None
    assert result.clean_accuracy >= 0.9
    assert result.card is not None
    classifier = load_classifier(str(result.card))
    data = make_trainer(recipe).data
    right = (classifier(data.x_validation).argmax(1) == data.y_validation).double().mean()
    assert result.clean_accuracy == float(right)
    figures = {figure["metric"]: figure["value"] for figure in classifier.card.figures}
    expected = {"clean_accuracy": result.clean_accuracy}
    if method != "standard":
        expected["robust_accuracy"] = pgd_accuracy(
            classifier, data.x_validation, data.y_validation, ThreatModel.parse(LINF)
        )
    assert figures == expected
    assert classifier.card.kind == ("standard" if method == "standard" else "robust")


def test_adversarial_training_is_robust(recipe: Recipe, tmp_path: Path) -> None:
    """Under the same PGD the adversarially trained network keeps what the standard one loses."""
    plain = train(with_training(recipe, epochs=6, threat=LINF), out=tmp_path / "plain")
    robust = train(with_training(recipe, epochs=10, **METHODS["pgd-at"]), out=tmp_path / "robust")
    assert plain.pgd_accuracy is not None
    assert robust.pgd_accuracy is not None
    assert robust.pgd_accuracy >= plain.pgd_accuracy + 0.3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [4, 13, 17])
def test_resume(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, steps: int) -> None:
    """Interrupted in an epoch or between two, the same command ends with the weights of an uninterrupted run."""
    recipe = with_training(recipe, **METHODS[method])
    whole = train(recipe, out=tmp_path / "whole")
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        interrupt_after(patch, steps)
        with pytest.raises(Interrupted):
            train(recipe, out=tmp_path / "cut")
    assert not (tmp_path / "cut" / "tiny.safetensors").exists()
    with monkeypatch.context() as patch:
        interrupt_after(patch, 26 - steps)  # nothing is done twice: the remaining steps are enough
        cut = train(recipe, out=tmp_path / "cut")
    assert same(weights(whole.out), weights(cut.out))
    assert same(weights(whole.out, "tiny-last"), weights(cut.out, "tiny-last"))
    timeless = [[{k: v for k, v in line.items() if "second" not in k} for line in lines(r)] for r in (whole, cut)]
    assert timeless[0] == timeless[1]


def test_resume_from_the_beginning(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted before the first checkpoint, the training begins again in the same folder."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interrupted):
            train(recipe, out=tmp_path / "cut")
    train(recipe, out=tmp_path / "cut")
    train(recipe, out=tmp_path / "whole")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_seed(recipe: Recipe, tmp_path: Path) -> None:
    """Another seed gives other weights."""
    train(recipe, out=tmp_path / "3")
    train(Recipe.from_dict(recipe.to_dict() | {"seed": 4}), out=tmp_path / "4")
    assert not same(weights(tmp_path / "3"), weights(tmp_path / "4"))


def test_budget(recipe: Recipe, tmp_path: Path) -> None:
    """A used budget stops after a whole step, says so, writes no classifier, and the same command goes on."""
    result = train(recipe, out=tmp_path / "out", budget_seconds=1e-6)
    assert not result.finished
    assert result.weights is None
    assert not (tmp_path / "out" / "tiny.safetensors").exists()
    log = (tmp_path / "out" / "train.log").read_text(encoding="utf-8")
    assert "the budget is used after step 1 of 26; the same command goes on." in log
    assert train(recipe, out=tmp_path / "out").finished
    assert "goes on after step 1" in (tmp_path / "out" / "train.log").read_text(encoding="utf-8")


def test_finished(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on a finished training trains nothing and gives the same result, even if its files were lost."""
    first = train(recipe, out=tmp_path / "out")
    held = weights(first.out)
    (first.out / "tiny.safetensors").unlink()
    interrupt_after(monkeypatch, 0)
    again = train(recipe, out=tmp_path / "out")
    assert same(held, weights(again.out))
    assert first.clean_accuracy == again.clean_accuracy


def test_other_recipe(recipe: Recipe, tmp_path: Path) -> None:
    """A folder of another recipe is refused with the fields that differ, and left as it is."""
    train(recipe, out=tmp_path / "out", budget_seconds=1e-6)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(RecordError, match=r"another training: training\.lr: 0\.5 here, 0\.01 there\. Name another"):
        train(with_training(recipe, lr=0.5), out=tmp_path / "out")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_two_trainings_in_one_folder(recipe: Recipe, tmp_path: Path) -> None:
    """The second one is refused while the first one runs, and welcome afterwards."""
    lock = FolderLock(tmp_path)
    with pytest.raises(BusyError, match="is being written by another process"):
        train(recipe, out=tmp_path)
    lock.release()
    assert train(recipe, out=tmp_path).finished
    assert not (tmp_path / "lock").exists()


def test_folder_with_other_files(recipe: Recipe, tmp_path: Path) -> None:
    """Weights that some other program has written are not overwritten."""
    (tmp_path / "tiny.safetensors").write_bytes(b"precious")
    with pytest.raises(RecordError, match=r"holds tiny\.safetensors, but no recipe\.json"):
        train(recipe, out=tmp_path)
    assert (tmp_path / "tiny.safetensors").read_bytes() == b"precious"


def test_unusable_folder(recipe: Recipe, tmp_path: Path) -> None:
    """A file in the place of the folder is one sentence."""
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match=r"--out: .*file cannot be written"):
        train(recipe, out=tmp_path / "file")


def test_damaged_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    """A truncated checkpoint is refused, never half-read."""
    train(recipe, out=tmp_path / "out", budget_seconds=1e-6)
    path = tmp_path / "out" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RecordError, match=r"checkpoint\.pt is damaged"):
        train(recipe, out=tmp_path / "out")


def test_diverging(recipe: Recipe, tmp_path: Path) -> None:
    """A loss that is no number ends the training with advice."""
    recipe = with_training(recipe, lr=1e30, optimizer="sgd", warmup=0.0)
    with pytest.raises(RobustgenError, match=r"the loss is (nan|inf) in epoch 1, step \d+; lower training\.lr"):
        train(recipe, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        ("network", {"options": {"widths": [8], "depths": [1], "classes": 3}}, "gives 3 logits, .* has 2 classes"),
        ("network", {"options": {"widths": [8], "depths": [1], "channels": 3, "classes": 2}}, "takes 3 channels"),
        ("data", {"mean": [0.5, 0.5], "std": [1, 1]}, r"data\.mean has 2 numbers, .* has 1 channels"),
    ],
)
def test_network_for_other_data(
    recipe: Recipe, tmp_path: Path, table: str, changes: dict[str, Any], message: str
) -> None:
    """A network for other images is refused before the first step."""
    content = recipe.to_dict()
    with pytest.raises(SpecError, match=message):
        train(Recipe.from_dict(content | {table: content[table] | changes}), out=tmp_path / "out")


def test_normalisation(recipe: Recipe, tmp_path: Path) -> None:
    """The normalisation of the recipe is in the card, and the classifier needs it."""
    content = recipe.to_dict()
    content["data"] |= {"mean": [0.5], "std": [0.2]}
    result = train(Recipe.from_dict(content), out=tmp_path / "out")
    assert result.card is not None
    card = Card.load(result.card)
    assert (card.mean, card.std) == ((0.5,), (0.2,))


def test_a_card_says_how_it_was_made(recipe: Recipe, tmp_path: Path) -> None:
    """The commands one after the other, files by their names alone; and for which noise."""
    provenance = json.dumps({"command": "robustgen generator sample toy --n 50"})
    path = write_generated(tmp_path, provenance=provenance)
    content = recipe.changed(generated=f"{path}:0.25").to_dict()
    content["training"] |= {"method": "gaussian", "options": {"sigma": 0.3}}
    result = train(Recipe.from_dict(content), out=tmp_path / "out")
    assert result.card is not None
    card = Card.load(result.card)
    made = "robustgen generator sample toy --n 50 && robustgen train tiny --generated made.npz:0.25 (seed 3, "
    assert card.source is not None
    assert card.source.startswith(made)
    assert card.sigma == 0.3


def test_guard_falls_back(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a simulated collapse the weights are the last good ones, and the attack has two steps from then on."""
    trainer = make_trainer(with_training(recipe, **METHODS["fgsm-rs"]))
    monkeypatch.setattr("robustgen.training.trainer.GUARD_STEPS", 2)
    monkeypatch.setattr("robustgen.training.trainer.fgsm_accuracy", lambda *_: 0.9)
    accuracies = iter([0.8, 0.1, 0.8])
    monkeypatch.setattr("robustgen.training.trainer.pgd_accuracy", lambda *_, **__: next(accuracies))
    for _ in range(2):
        trainer.step()
    assert trainer.guard() is None
    good = trainer.state()
    for _ in range(2):
        trainer.step()
    said = trainer.guard()
    assert said is not None
    assert "back to step 2, from now on with 2 attack steps" in said
    assert (trainer.at.step, trainer.method.steps) == (2, 2)
    assert same(good["model"], trainer.model.state_dict())
    assert same(good["average"], trainer.average.state_dict())
    assert [line["event"] for line in trainer.at.history] == ["fallback"]
    again = make_trainer(trainer.recipe)
    again.load_state(trainer.state())
    assert again.method == trainer.method


def test_guard_in_a_run(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collapse is in the log and in the metrics, and the run ends with all its epochs."""
    verdicts = iter([False, True])
    monkeypatch.setattr("robustgen.training.trainer.has_collapsed", lambda *_: next(verdicts, False))
    result = train(with_training(recipe, **METHODS["fgsm-rs"]), out=tmp_path / "out")
    (event,) = lines(result, "fallback")
    assert (event["step"], event["back_to_step"], event["attack_steps"]) == (26, 13, 2)
    assert [(line["epoch"], line["attack_steps"]) for line in lines(result)] == [(1, 1), (2, 2)]
    assert "catastrophic overfitting at step 26" in (result.out / "train.log").read_text(encoding="utf-8")


def test_standard_is_not_guarded(recipe: Recipe) -> None:
    """Only the one-step attack is watched: the others cost nothing more."""
    for method in ("standard", "pgd-at"):
        assert not make_trainer(with_training(recipe, **METHODS[method])).guarding


def test_best_and_last(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier is the best epoch's, and the last epoch's weights are kept beside it."""
    scores = iter([0.9, 0.2])
    monkeypatch.setattr("robustgen.training.trainer.clean_accuracy", lambda *_: next(scores))
    result = train(recipe, out=tmp_path / "out")
    assert result.best_epoch == 1
    assert not same(weights(result.out), weights(result.out, "tiny-last"))


def test_average(recipe: Recipe) -> None:
    """With decay 0 the averaged weights are the trained ones; with 0.9 they lag behind; both are finite."""
    for decay, equal in ((0.0, True), (0.9, False)):
        trainer = make_trainer(with_training(recipe, ema_decay=decay))
        for _ in range(3):
            trainer.step()
        assert same(trainer.model.network.state_dict(), trainer.average.module.network.state_dict()) is equal


@pytest.mark.parametrize(
    ("schedule", "half_way"),
    [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0), ("piecewise", 0.1)],
)
def test_learning_rate(recipe: Recipe, schedule: str, half_way: float) -> None:
    """It rises linearly to its height and falls as the schedule says."""
    settings = with_training(recipe, lr=2.0, warmup=0.2, schedule=schedule).training
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[:20] == pytest.approx([0.1 * (step + 1) for step in range(20)])
    assert rates[20] == 2.0
    assert rates[60] == pytest.approx(2.0 * half_way)
    assert min(rates) > 0


def test_one_cycle(recipe: Recipe) -> None:
    """From a twenty-fifth of its height, up and down along cosines."""
    settings = with_training(recipe, lr=2.0, warmup=0.2, schedule="one-cycle").training
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[19] == max(rates) == pytest.approx(2.0)
    assert 2.0 / 25 < rates[0] < 2.0 / 20
    assert rates[9] == pytest.approx(1.04)  # half-way between 0.08 and 2
    assert rates[60] == pytest.approx(1.0)
    assert rates[99] < 0.001


def test_validation_now_and_then(recipe: Recipe, tmp_path: Path) -> None:
    """Every second epoch is measured, and the last one always; the others say so."""
    result = train(with_training(recipe, epochs=5, validate_every=2), out=tmp_path / "out")
    assert [line["clean_accuracy"] is not None for line in lines(result)] == [False, True, False, True, True]
    assert result.best_epoch in (2, 4, 5)


def test_generated_images(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They change the weights, are said in the log, survive an interruption, and cannot be exchanged half-way."""
    path = write_generated(tmp_path, n=20)
    mixed = recipe.changed(generated=f"{path}:0.5")
    whole = train(mixed, out=tmp_path / "whole")
    assert "8 a step of 160 images, 8 a step of 20 generated ones (made.npz)" in (whole.out / "train.log").read_text()
    assert not same(weights(whole.out), weights(train(recipe, out=tmp_path / "real").out))
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(Interrupted):
            train(mixed, out=tmp_path / "cut")
    kept = path.read_bytes()
    write_generated(tmp_path, n=20, label=np.ones(20, dtype=np.int64))
    with pytest.raises(RecordError, match=r"made\.npz is not the file that .*cut began with"):
        train(mixed, out=tmp_path / "cut")
    path.write_bytes(kept)
    assert same(weights(whole.out), weights(train(mixed, out=tmp_path / "cut").out))


def test_another_mixture_is_another_training(recipe: Recipe, tmp_path: Path) -> None:
    """A folder keeps to its files and shares."""
    path = write_generated(tmp_path, n=20)
    train(recipe.changed(generated=f"{path}:0.5"), out=tmp_path / "out", budget_seconds=1e-6)
    with pytest.raises(RecordError, match=r"another training: generated\.files: .*0\.25.* here, .*0\.5.* there"):
        train(recipe.changed(generated=f"{path}:0.25"), out=tmp_path / "out")
    with pytest.raises(SpecError, match=r"--labels is for generated images; name them"):
        recipe.changed(labels="fmnist-standard")


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    """torchrun shares the batch, learns, writes one classifier, and goes on after a budget as if there were none."""
    path = write_recipe(tmp_path, lambda text: text.replace("epochs = 2", "epochs = 8"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "robustgen", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for out, options in (("whole", []), ("cut", ["--budget", "0.01s"]), ("cut", [])):
        command = [sys.executable, *launcher, str(path), "--out", str(tmp_path / out), *options]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    last = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last["clean_accuracy"] > 0.9
