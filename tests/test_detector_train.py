"""Training a detector: kill -9 and resume, the card, the validation scenes, recipes, the command line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustgen.cli import _run
from robustgen.data import load_data
from robustgen.detectors import train as train_module
from robustgen.detectors.detector import load_detector
from robustgen.detectors.recipe import DetectorRecipe, list_detector_recipes, load_detector_recipe
from robustgen.detectors.scenes import ComposedScenes, Scene
from robustgen.detectors.train import DetectorResult, train_detector
from robustgen.detectors.trainer import DetectorTrainer, training_scenes
from robustgen.errors import RecordError, RobustgenError, SpecError
from robustgen.progress import Silent
from tests.detector_helpers import QUICK_RECIPE, quick_recipe, write_blocks
from tests.helpers import assert_global_rng_untouched


@pytest.fixture(autouse=True)
def _task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_blocks(tmp_path)


def train(out: str = "out", **options: object) -> DetectorResult:
    """A quick one."""
    return train_detector(quick_recipe(), out=Path(out), device="cpu", **options)  # type: ignore[arg-type]


class Killer(Silent):
    """Ends its process, as kill -9 does, after so many steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def advance(self, done: int, info: str) -> None:
        if done == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def test_kill_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed twice and stopped by a budget, it ends with the same weights, bit for bit, as without interruption."""
    with assert_global_rng_untouched():
        whole = train("whole")
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    for after in (2, 5):
        child = os.fork()
        if child == 0:
            train("killed", progress=Killer(after))
            os._exit(0)
        assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert after == torch.load("killed/checkpoint.pt", weights_only=True)["at"]["step"]
    stopped = train("killed", budget_seconds=0.0)
    assert (6, False, None) == (stopped.steps, stopped.finished, stopped.card)
    assert "6 of 8 steps done" in stopped.lines()[0]
    resumed = train("killed")
    assert Path("whole/quick.safetensors").read_bytes() == Path("killed/quick.safetensors").read_bytes()
    assert (whole.ap50, whole.ap) == (resumed.ap50, resumed.ap)
    lines = [json.loads(line) for line in Path("killed/metrics.jsonl").read_text().splitlines()]
    assert [3, 6, 8] == [line["step"] for line in lines]
    before = [json.loads(line)["loss"] for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    assert before == pytest.approx([line["loss"] for line in lines])
    with pytest.raises(RecordError, match=r"another training: training\.lr: 0\.02 here, 0\.01 there"):
        train_detector(quick_recipe(lr=0.02), out=Path("killed"), device="cpu")


class Noted:
    """Scenes that keep which of them were asked for."""

    def __init__(self, scenes: ComposedScenes) -> None:
        self.scenes, self.asked = scenes, list[int]()

    def take(self, numbers: Sequence[int]) -> list[Scene]:
        """As the scenes themselves."""
        self.asked += numbers
        return self.scenes.take(numbers)


def test_it_learns_from_scenes_that_are_new_in_each_step() -> None:
    """Blocks on an empty background: no scene is seen twice, and the loss falls."""
    recipe = quick_recipe(steps=30, batch_size=4, lr=0.03)
    recipe = replace(recipe, scenes=replace(recipe.scenes, clutter=0.0))
    scenes, validation = training_scenes(recipe, load_data("npz:blocks.npz"))
    noted = Noted(scenes)
    trainer = DetectorTrainer(recipe, scenes, validation, torch.device("cpu"), "float32")
    trainer.scenes = noted  # type: ignore[assignment]
    losses = [trainer.step() for _ in range(30)]
    assert list(range(120)) == noted.asked
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_card_speaks_of_the_files() -> None:
    """Hash, options and names; loaded by the card it measures what the card says; figures are of held-out pictures."""
    result = train()
    assert result.card is not None
    card = json.loads(result.card.read_text())
    held = load_detector(str(result.card))
    assert (card["sha256"], 3, 1) == (held.weights_sha256, held.card.classes, held.card.channels)
    assert ("background", "0", "1") == held.card.class_names
    assert {"ap50": result.ap50, "ap": result.ap} == {f["metric"]: f["value"] for f in card["figures"]}
    scenes, validation = training_scenes(quick_recipe(), load_data("npz:blocks.npz"))
    assert (32, 8) == (len(scenes.pool), len(validation.pool))
    assert not set(scenes.pool) & set(validation.pool)
    assert not torch.equal(scenes.take([0])[0].image, validation.take([0])[0].image)


def test_a_loss_that_is_no_number_stops_it() -> None:
    """With the step at which it happened."""
    recipe = quick_recipe()
    trainer = DetectorTrainer(
        recipe, *training_scenes(recipe, load_data("npz:blocks.npz")), torch.device("cpu"), "float32"
    )
    with torch.no_grad():
        trainer.model.class_logits.bias.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(RobustgenError, match="quick: the loss is nan in step 1"):
        trainer.step()


@pytest.mark.parametrize(
    ("table", "change", "says"),
    [
        ("network", {"channels": 3}, r"network\.channels must be 1 for npz:blocks\.npz, got 3"),
        ("network", {"classes": 9}, r"network\.classes must be 2"),
        ("network", {"widths": [4, 4]}, r"network\.widths must be a list of three"),
        ("network", {"depth": 3}, r"network\.depth"),
        ("data", {"validation": 40}, "leaves none to train on"),
        ("training", {"lr": 0}, r"training\.lr must be a number above 0"),
        ("training", {"schedule": "step"}, "one of linear, cosine, constant"),
        ("scenes", {"largest": 99}, "smallest <= largest <= size"),
    ],
)
def test_bad_recipes(table: str, change: dict[str, object], says: str) -> None:
    """One sentence each, with the field."""
    with pytest.raises(SpecError, match=says):
        train_detector(
            DetectorRecipe.from_dict({**QUICK_RECIPE, table: {**QUICK_RECIPE[table], **change}}),  # type: ignore[dict-item]
            out=Path("out"), device="cpu",
        )  # fmt: skip


@pytest.mark.parametrize("name", sorted(list_detector_recipes()))
def test_bundled_recipes_load(name: str) -> None:
    """Each is named after its file and comes back from its own tables."""
    recipe = load_detector_recipe(name)
    assert name == recipe.name
    assert [] == recipe.differences(DetectorRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))))


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Train from a file, measure with a picture, and what is wrong in a sentence, exit code 2."""
    toml = "\n".join(
        f"[{key}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in value.items())
        for key, value in QUICK_RECIPE.items() if isinstance(value, dict)
    )  # fmt: skip
    Path("quick.toml").write_text(f'name = "quick"\ndescription = "Quick."\n{toml}\n')
    assert 0 == _run(["detector", "train", "quick.toml", "--device", "cpu"]), capsys.readouterr().err
    assert "on validation scenes AP50" in capsys.readouterr().out
    measure = ["detector", "eval", "trained/quick/quick.json", "--scenes", "npz:blocks.npz", "-n", "5"]
    assert 0 == _run([*measure, "--picture", "seen.png", "--json"]), capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert 5 == found["n"] <= found["objects"]
    with Image.open("seen.png") as picture:
        assert picture.size[0] > 192
    assert 0 == _run(measure)
    assert "AP50" in capsys.readouterr().out
    for arguments, says in (
        (["detector", "train", "fmnist-detectr"], "did you mean 'fmnist-detector'"),
        ([*measure[:5], "-n", "0"], "--n must be >= 1"),
        (["detector", "eval", "trained/quick/quick.json", "--scenes", "cifar"], "unknown data"),
    ):
        assert 2 == _run(arguments)
        assert says in capsys.readouterr().err
