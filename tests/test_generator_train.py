"""Training generators from end to end: it learns, it resumes bit for bit, it stops when asked, it keeps its folder."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustgen.errors import RecordError, RobustgenError, SpecError
from robustgen.generator.augment import Augmentation
from robustgen.generator.card import GeneratorCard
from robustgen.generator.draw import draw
from robustgen.generator.load import load_generator
from robustgen.generator.network import NetworkSettings, Unet
from robustgen.generator.recipe import GeneratorRecipe, list_generator_recipes, load_generator_recipe
from robustgen.generator.samplers import Heun
from robustgen.generator.train import train_generator
from robustgen.generator.trainer import GeneratorTrainer, learning_rate, make_objective
from robustgen.ranks import Ranks
from robustgen.training.data import TrainingData
from tests.generator_helpers import tiny_recipe, write_images
from tests.helpers import ROOT, assert_global_rng_untouched


@pytest.fixture
def recipe(tmp_path: Path) -> GeneratorRecipe:
    """20 steps of 8 images on 48 images of bars."""
    return tiny_recipe(write_images(tmp_path))


def make_trainer(recipe: GeneratorRecipe, ranks: Ranks | None = None) -> GeneratorTrainer:
    """A trainer that has done nothing yet."""
    data = TrainingData.load(recipe.data.name, data_dir=None, validation=16, seed=recipe.seed, batch_size=8, augment=())
    with torch.random.fork_rng(devices=[]):
        return GeneratorTrainer(recipe, data, torch.device("cpu"), recipe.training.precision, ranks or Ranks())


def test_it_learns_and_its_card_loads(recipe: GeneratorRecipe, tmp_path: Path) -> None:
    """The validation loss falls below that of a silent network, and card and weights give a generator that draws."""
    longer = replace(recipe, training=replace(recipe.training, images=2400))
    with assert_global_rng_untouched():
        result = train_generator(longer, out=tmp_path / "out")
    assert result.finished
    assert result.validation_loss is not None
    assert result.validation_loss < 0.8
    assert result.card is not None
    card = GeneratorCard.load(result.card)
    assert card.figures[0]["value"] == result.validation_loss
    generator = load_generator(str(result.card), precision="float32")
    x = draw(generator.denoiser, Heun(steps=4), range(4), torch.tensor([0, 1, 0, 1]))
    assert x.shape == (4, 1, 8, 8)
    assert (tmp_path / "out" / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert "draw from it" in result.lines()[-1]


def test_ddpm_learns_too(recipe: GeneratorRecipe, tmp_path: Path) -> None:
    """The simple loss of predicted noise, which starts at 1, falls; v prediction as well."""
    for prediction in ("epsilon", "v_prediction"):
        objective = replace(recipe.objective, kind="ddpm", steps=50, prediction=prediction)
        longer = replace(recipe, objective=objective, training=replace(recipe.training, images=2400))
        result = train_generator(longer, out=tmp_path / prediction)
        assert result.validation_loss is not None
        assert result.validation_loss < 0.75
        assert result.card is not None
        assert load_generator(str(result.card)).denoiser.classes == 2


def test_an_interrupted_training_ends_with_the_same_weights(
    recipe: GeneratorRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after 7 of 20 steps by its budget and gone on with: bit for bit what it gives in one go."""
    recipe = replace(recipe, training=replace(recipe.training, metrics_images=40))
    whole = train_generator(recipe, out=tmp_path / "whole")
    step, done = GeneratorTrainer.step, [0]

    def slow(self: GeneratorTrainer) -> float:
        done[0] += 1
        if done[0] == 7:
            time.sleep(0.6)
        return step(self)

    monkeypatch.setattr(GeneratorTrainer, "step", slow)
    first = train_generator(recipe, out=tmp_path / "parts", budget_seconds=0.6)
    assert not first.finished
    assert "goes on" in first.lines()[0]
    second = train_generator(recipe, out=tmp_path / "parts")
    assert second.finished
    one, other = (load_file(result.out / "tiny.safetensors") for result in (whole, second))
    assert all(torch.equal(one[key], other[key]) for key in one)
    losses = [
        [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (whole.out, second.out)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_bfloat16_steps_go_where_float32_steps_go(recipe: GeneratorRecipe) -> None:
    """Adam's first steps are signs of gradients: nine in ten are the same, which they are not in another layout."""
    moved = []
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer(
            replace(recipe, training=replace(recipe.training, warmup=0, precision=precision)),
        )
        for _ in range(2):  # the first moves nothing behind a convolution that begins as zeros
            trainer.step()
        before = [weight.detach().clone() for weight in trainer.network.parameters()]
        trainer.step()
        after = trainer.network.parameters()
        changes = [(b - a).flatten() for a, b in zip(before, after, strict=True) if a.dim() == 4 and a.shape[2] == 3]
        moved.append(torch.cat(changes))
    assert float((moved[0].sign() == moved[1].sign()).float().mean()) > 0.9


@pytest.mark.slow
def test_killed_and_resumed(recipe: GeneratorRecipe, tmp_path: Path) -> None:
    """SIGKILL at three moments, by the command line: the weights are those of a training in one go."""
    path = tmp_path / "bars.npz"
    text = json.dumps(replace(recipe, training=replace(recipe.training, images=1600)).to_dict())
    code = (
        "import json, sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from robustgen.generator import train; from robustgen.generator.recipe import GeneratorRecipe\n"
        "train.CHECKPOINT_SECONDS = 0.2\n"
        f"train.train_generator(GeneratorRecipe.from_dict(json.loads({text!r})), out=Path(sys.argv[1]))"
    )
    assert path.is_file()
    command = [sys.executable, "-c", code]
    kills = 0
    while kills < 3:
        process = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=ROOT)
        held = tmp_path / "killed" / "checkpoint.pt"
        begun, before = time.monotonic(), held.stat().st_mtime_ns if held.exists() else 0
        while process.poll() is None and time.monotonic() - begun < 60:
            if held.exists() and held.stat().st_mtime_ns != before:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.02)
        process.wait()
        if process.returncode == 0:
            break
    assert kills >= 1
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], cwd=ROOT, check=True)
    one, other = (load_file(tmp_path / name / "tiny.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_two_ranks_train_what_one_does(recipe: GeneratorRecipe, tmp_path: Path) -> None:
    """torchrun shares the batch: losses and weights agree with one process up to the order of sums."""
    file = tmp_path / "recipe.toml"
    file.write_text(
        f'name = "tiny"\ndescription = "x"\nseed = 3\n[data]\nname = "{recipe.data.name}"\nvalidation = 16\n'
        "[network]\nchannels = [8, 8]\nhead = 8\ngroups = 4\n[objective]\nkind = 'edm'\n"
        "[training]\nimages = 160\nbatch_size = 7\nlr = 1e-3\nprecision = 'float32'\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for ranks, name in ((1, "one"), (2, "two")):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        tail = ["-m", "robustgen", "generator", "train", str(file), "--out", str(tmp_path / name)]
        subprocess.run([sys.executable, *launcher, *tail], cwd=ROOT, env=environment, check=True, capture_output=True)
    one, two = (load_file(tmp_path / name / "tiny.safetensors") for name in ("one", "two"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-3


def test_a_loss_that_is_not_finite_stops_at_the_last_checkpoint(recipe: GeneratorRecipe, tmp_path: Path) -> None:
    """The step and its images are named, and what was saved stays."""
    trainer = make_trainer(recipe)
    for _ in range(3):
        trainer.step()
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(math.nan)
    with pytest.raises(RobustgenError, match=r"the loss is nan in step 4 \(images 25 to 32 of the training\)"):
        trainer.step()
    assert trainer.at.step == 3
    hot = replace(recipe, training=replace(recipe.training, lr=1e30, warmup=0))
    with pytest.raises(RobustgenError, match="last good checkpoint is kept"):
        train_generator(hot, out=tmp_path / "hot")


def test_another_recipe_is_refused(recipe: GeneratorRecipe, tmp_path: Path) -> None:
    """A folder belongs to one training; the fields that differ are named."""
    train_generator(recipe, out=tmp_path / "out")
    other = replace(recipe, training=replace(recipe.training, lr=3e-3))
    with pytest.raises(RecordError, match=r"training.lr: 0.003 here, 0.01 there"):
        train_generator(other, out=tmp_path / "out")


def test_ranks_see_disjoint_rows_of_one_batch(recipe: GeneratorRecipe) -> None:
    """Two ranks together see what one sees, noise and sigma included."""
    whole, parts = make_trainer(recipe), [make_trainer(recipe, Ranks(rank, 2)) for rank in (0, 1)]
    together = whole._batch(5)
    halves = [trainer._batch(5) for trainer in parts]
    for k in (0, 1, 3, 4):
        one, two, both = halves[0][k], halves[1][k], together[k]
        assert one is not None
        assert two is not None
        assert both is not None
        assert torch.equal(torch.cat([one, two]), both)


def test_every_image_is_shown_once_a_pass(recipe: GeneratorRecipe) -> None:
    """48 images in batches of 8: six steps show each once, also across the end of a pass."""
    trainer = make_trainer(recipe)
    for first in (0, 6, 12):
        rows = torch.cat([trainer._rows(step) for step in range(first, first + 6)])
        assert sorted(rows.tolist()) == list(range(48))


def test_average_follows_the_half_life(recipe: GeneratorRecipe) -> None:
    """After each step the average is lerped by 1 - 0.5^(batch / H), H the ramp's share of the images shown."""
    trainer = make_trainer(recipe)
    name, weight = next((n, p) for n, p in trainer.network.named_parameters() if n.endswith("conv_in.weight"))
    expected = weight.detach().clone()
    for step in range(5):
        trainer.step()
        if step == 0:
            expected = weight.detach().clone()  # torch's average copies the first weights
            continue
        half_life = min(500_000, 0.05 * 8 * (step + 1))
        expected.lerp_(weight.detach(), 1 - 0.5 ** (8 / half_life))
    torch.testing.assert_close(dict(trainer.average.module.named_parameters())[name].detach(), expected)


def test_learning_rate_rises_then_falls(recipe: GeneratorRecipe) -> None:
    """Linear over the warm-up, then a cosine to 0, or constant."""
    settings = recipe.training
    rates = [learning_rate(settings, step) for step in range(21)]
    assert rates[0] < rates[1] < rates[4] < rates[5] == pytest.approx(0.01)
    assert rates[20] == pytest.approx(0)
    assert rates[12] == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi * 56 / 120)))
    assert learning_rate(replace(settings, schedule="constant"), 19) == 0.01


def test_what_the_recipe_leaves_open_is_measured(recipe: GeneratorRecipe) -> None:
    """Mean and standard deviation of the training images in [-1, 1]."""
    data = TrainingData.load(recipe.data.name, data_dir=None, validation=16, seed=3, batch_size=8, augment=())
    objective = make_objective(recipe, data.x)
    pixels = data.x.double() / 127.5 - 1
    assert objective.sigma_data == pytest.approx(float(pixels.std()), abs=1e-3)  # type: ignore[union-attr]
    assert objective.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-3)  # type: ignore[union-attr]


def test_augmentation_tells_what_it_did() -> None:
    """Probability 0 leaves all but the mirror, whose parameter says which; a shift is what its parameters say."""
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changed, parameters = Augmentation(0.0)(x, torch.Generator().manual_seed(1))
    mirrored = parameters[:, 0] == 1
    assert 10 < int(mirrored.sum()) < 54
    torch.testing.assert_close(changed[mirrored], x[mirrored].flip(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(changed[~mirrored], x[~mirrored], rtol=0, atol=1e-5)
    assert float(parameters[:, 1:].abs().max()) == 0
    changed, parameters = Augmentation(0.999)(x, torch.Generator().manual_seed(2))
    assert bool((parameters[:, 2:].abs().amax(0) > 0.01).all())
    assert float(changed.abs().max()) <= 1 + 1e-5


def test_a_rotation_by_the_augmentation_is_a_rotation() -> None:
    """A quarter turn, made by hand through the same warp, equals torch's rot90."""
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(1)
    turned = Augmentation._warp(x, zero, zero, zero, torch.tensor([math.pi / 2]), zero, zero, zero, zero)
    distances = [float((turned - torch.rot90(x, k, (2, 3))).abs().max()) for k in (1, 3)]
    assert min(distances) < 1e-4


def test_the_network_sees_class_noise_and_augmentation() -> None:
    """Once its last layer is not zero, each condition changes the output; no class and class -1 are the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = Unet(NetworkSettings(channels=(8, 8), groups=4, head=8), (1, 8, 8), 3, augmented=True).eval()
        torch.nn.init.normal_(unet.unet.conv_out.weight)
        x = torch.randn(1, 1, 8, 8)
    level, one = torch.tensor([0.3]), torch.tensor([1])
    with torch.no_grad():
        plain = unet(x, level)
        assert torch.equal(plain, unet(x, level, torch.tensor([-1])))
        others = [unet(x, level + 1), unet(x, level, one), unet(x, level, None, torch.ones(1, 9))]
    assert all(float((other - plain).abs().max()) > 1e-4 for other in others)


@pytest.mark.parametrize("name", sorted(list_generator_recipes()))
def test_bundled_recipes_load(name: str) -> None:
    """Every recipe that comes with robustgen is valid, and named as its file."""
    assert load_generator_recipe(name).name == name


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        ("training", "lrr", 0.1, "did you mean 'training.lr'"),
        ("training", "lr", 0, "training.lr must be a number above 0"),
        ("training", "images", 4, "must be at least training.batch_size"),
        ("training", "precision", "float16", "one of auto, float32, bfloat16"),
        ("training", "label_dropout", 1.0, r"in \[0, 1\)"),
        ("training", "optimizer", "sgd", "one of adam, adamw"),
        ("network", "channels", [8, 9], "9 is not a multiple of network.groups"),
        ("network", "channels", [], "a list of whole numbers"),
        ("network", "attention", [1], "one number a level"),
        ("network", "head", 3, "not a multiple of network.head"),
        ("objective", "kind", "vp", "one of edm, ddpm"),
        ("objective", "p_std", -1, "objective.p_std must be a number above 0"),
        ("objective", "schedule", "cosin", "one of linear, cosine"),
        ("data", "conditional", "yes", "true or false"),
    ],
)
def test_impossible_recipes_are_refused(
    recipe: GeneratorRecipe, table: str, key: str, value: object, message: str
) -> None:
    """Before any work, with the field, what it must be, and what came."""
    content = recipe.to_dict()
    content[table] = {**content[table], key: value}
    with pytest.raises(SpecError, match=message):
        GeneratorRecipe.from_dict(content)


def test_incomplete_recipes_are_refused(recipe: GeneratorRecipe) -> None:
    """A missing table, field or an unknown one is named."""
    content = recipe.to_dict()
    for change, message in (
        ({"objective": 3}, "objective must be a table"),
        ({"objektive": {}}, "did you mean 'objective'"),
        ({"training": {"images": 8}}, "'training.batch_size' is missing"),
    ):
        with pytest.raises(SpecError, match=message):
            GeneratorRecipe.from_dict({**content, **change})
    del content["network"]
    with pytest.raises(SpecError, match=r"table \[network\] is missing"):
        GeneratorRecipe.from_dict(content)


def test_images_that_cannot_be_halved_are_refused(tmp_path: Path) -> None:
    """Four levels need a multiple of eight."""
    recipe = tiny_recipe(write_images(tmp_path, shape=(6, 8, 1)))
    with pytest.raises(SpecError, match="6 x 8 is not a multiple of 4"):
        train_generator(replace(recipe, network=NetworkSettings(channels=(8, 8, 8), groups=4)), out=tmp_path / "o")
