"""Recipes: what they may say, and what is said of a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robustgen.classifiers import load_classifier
from robustgen.errors import ArtifactError, SpecError
from robustgen.training.method import make_method
from robustgen.training.methods.pgd_at import PgdAdversarial
from robustgen.training.model import make_network
from robustgen.training.recipe import Recipe, list_recipes, load_recipe, parse_duration
from tests.training_helpers import write_recipe


def swap(old: str, new: str) -> Callable[[str], str]:
    """A change of the recipe's text that must find what it replaces."""

    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


@pytest.mark.parametrize("name", list_recipes())
def test_bundled_recipe(name: str) -> None:
    """Every bundled recipe can be read, is named after its file, and fits the network that it names."""
    recipe = load_recipe(name)
    assert name == recipe.name
    assert recipe.licence == "MIT"


def test_bundled_names() -> None:
    """The recipes of the two bundled classifiers are there."""
    assert {"fmnist-at", "fmnist-standard"} <= set(list_recipes())


def test_read(tmp_path: Path) -> None:
    """Fields arrive with their types, and whole numbers do where decimals are wanted."""
    recipe = load_recipe(write_recipe(tmp_path, swap("lr = 1e-2", "lr = 1")))
    assert isinstance(recipe.training.lr, float)
    assert recipe.training.augment == ("flip", "crop")
    assert recipe.network.options["widths"] == [8]


def test_dictionary_round_trip() -> None:
    """A recipe survives being written as plain tables."""
    recipe = load_recipe("fmnist-at")
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_methods() -> None:
    """The methods take the recipe's steps, or their papers' own."""
    method = load_recipe("fmnist-at").training.make_method()
    assert isinstance(method, PgdAdversarial)
    assert (method.steps, method.rel_step) == (3, 0.4)
    fast: Any = make_method("fgsm-rs", threat=method.threat, label_smoothing=0.0, options={})
    assert (fast.steps, fast.rel_step, fast.guarded) == (1, 1.25, True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epoch = 2", r"unknown field 'training\.epoch'; did you mean 'training\.epochs'"),
        ("seed = 3", "sead = 3", "unknown field 'sead'; did you mean 'seed'"),
        ("seed = 3", "seed = -1", r"seed must be a whole number >= 0, got -1"),
        ("seed = 3", "seed = false", r"seed must be a whole number >= 0, got False"),
        ("epochs = 2", "epochs = 0", r"training\.epochs must be a whole number >= 1, got 0"),
        ("epochs = 2", 'epochs = "2"', r"training\.epochs must be a whole number >= 1, got '2'"),
        ("epochs = 2", "", r"the field 'training\.epochs' is missing"),
        ("lr = 1e-2", "lr = -0.1", r"training\.lr must be a number above 0, got -0\.1"),
        ("lr = 1e-2", "lr = nan", r"training\.lr must be a number above 0, got nan"),
        ("warmup = 0.1", "warmup = 1", r"training\.warmup must be a number in \[0, 1\), got 1"),
        ("batch_size = 16", "batch_size = 1", r"training\.batch_size must be a whole number >= 2"),
        ('"adamw"', '"adam"', r"unknown training\.optimizer 'adam'; did you mean 'adamw'"),
        ('"standard"', '"pgd-att"', r"unknown training\.method 'pgd-att'; did you mean 'pgd-at'"),
        ('"standard"', '"pgd-at"', r"training\.threat: method 'pgd-at' needs a threat model"),
        (
            '"standard"',
            '"standard"\nsteps = 3',
            r"training\.steps: method 'standard' has no such option, nor any other",
        ),
        (
            '"standard"',
            '"fgsm-rs"\nthreat = "linf:0.1"\nsteps = 3',
            r"training\.steps: method 'fgsm-rs' takes one step",
        ),
        ('"standard"', '"pgd-at"\nthreat = "linf:8"', r"did you mean linf:8/255"),
        ('["flip", "crop"]', '["flap"]', r"unknown training\.augment 'flap'; did you mean 'flip'"),
        ('["flip", "crop"]', '"flip"', r"training\.augment must be a list"),
        ("validation = 40", "validation = 40\nmean = [0.5]", r"data\.mean and data\.std need one number a channel"),
        ("[data]", "[date]", "unknown field 'date'; did you mean 'data'"),
        ('"small-resnet"', '"smal-resnet"', "unknown architecture 'smal-resnet'; did you mean 'small-resnet'"),
        ("stem_stride", "stem_strid", "unknown option of small-resnet 'stem_strid'; did you mean 'stem_stride'"),
        ("options = ", "widths = [8]\noptions = ", r"network\.widths: options .* belong into .*\[network\.options\]"),
        ('name = "tiny"', 'name = "a/b"', "name must be letters, digits"),
        ('name = "tiny"', "name = ", "is not TOML"),
    ],
)
def test_wrong_recipe(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Each mistake is one sentence that names the file and the field."""
    path = write_recipe(tmp_path, swap(old, new))
    with pytest.raises(SpecError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_no_recipe(tmp_path: Path) -> None:
    """An unknown name is answered with the nearest one, a missing file as such."""
    with pytest.raises(SpecError, match="unknown recipe 'fmnist-att'; did you mean 'fmnist-at'"):
        load_recipe("fmnist-att")
    with pytest.raises(ArtifactError, match="there is no such file"):
        load_recipe(tmp_path / "none.toml")


def test_differences(tmp_path: Path) -> None:
    """Two recipes differ in the fields that were changed and in no other."""
    first = load_recipe(write_recipe(tmp_path))
    second = load_recipe(write_recipe(tmp_path, swap("lr = 1e-2", "lr = 2e-2")))
    assert first.differences(first) == []
    assert first.differences(second) == ["training.lr: 0.01 here, 0.02 there"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("30m", 1800), ("45s", 45), ("90", 90), ("1h30m", 5400), (" 1.5H ", 5400)]
)
def test_duration(text: str, seconds: float) -> None:
    """Hours, minutes and seconds, alone or together."""
    assert seconds == parse_duration(text)


@pytest.mark.parametrize("text", ["", "0", "-5m", "m", "5 minutes", "30m2h"])
def test_wrong_duration(text: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(SpecError, match="a duration reads like 2h, 30m"):
        parse_duration(text)


def test_start() -> None:
    """A network begins with the weights of a classifier, and one that they do not fit is refused."""
    recipe = load_recipe("fmnist-denoised-0.25")
    state = make_network(recipe.network).state_dict()
    expected = load_classifier("fmnist-standard").network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
    with pytest.raises(SpecError, match=r"network\.start: the weights of cifar10-at do not fit"):
        make_network(replace(recipe.network, start="cifar10-at"))
