"""What an experiment takes, and the same experiment as commands that one can run piece by piece on other machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustgen.reproduce.experiment import Arm, Scale, Table
from robustgen.reproduce.runner import Runner
from robustgen.training.recipe import Recipe, load_recipe

__all__ = ["commands", "describe_training", "forwards_per_image", "to_toml"]

H100_FLOPS = 400e12  # a second, in bfloat16 on matrices as large as these: 40 % of the data sheet's 990e12


def forwards_per_image(recipe: Recipe) -> int:
    """Cost of a training image in forward passes: an input gradient counts 2 with its forward pass, a step 3.

    TRADES and MART train on two images for one.
    """
    method = recipe.training.make_method()
    trained = 2 if recipe.training.method in ("trades", "mart") else 1
    return 2 * method.steps + 3 * trained


def describe_training(table: Table, scale: Scale) -> str:
    """What is trained for a table at a scale, in words."""
    recipe = load_recipe(scale.recipe)
    training, data = recipe.training, recipe.data
    ratios = [f"{ratio:g}" for ratio in sorted({arm.ratio for arm in table.arms})]
    counts = " or ".join(part for part in (", ".join(ratios[:-1]), ratios[-1]) if part)
    real = "all real images" if data.images is None else f"{data.images:,} real images"
    return (
        f"{recipe.network.architecture}, {training.method}, {training.threat}, {training.epochs} epochs of {real}, "
        f"{counts} generated images for each real one, {scale.share:.0%} of each batch where there are any."
    )


@dataclass(frozen=True, slots=True)
class _Cost:
    images: int  # shown to the classifier
    flops: float


def commands(table: Table, scale: Scale, out: Path) -> str:
    """A shell script: every step of every arm, with its recipe written beside it, and what all of it takes.

    Writes OUT/recipes/*.toml and OUT/commands.sh.
    """
    runner = Runner(table, scale, out)
    folder = out / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    lines, done, total = [], set(), 0.0
    for arm in table.arms:
        made = [*_image_commands(runner, arm, folder), *_training_commands(runner, arm, folder)]
        lines += ["", f"# {arm.name}", *(line for line in made if line not in done)]
        done |= set(made)
        total += _cost(runner.classifier_recipe(arm, 0), scale).flops * len(scale.seeds)
    hours = total / H100_FLOPS / 3600
    again = f"robustgen reproduce {table.name} --scale {scale.name} --out {out}"
    head = [
        "#!/bin/sh",
        f"# {table.title} ({table.source})",
        f"# Scale {scale.name}: {scale.description}",
        f"# Takes: {scale.resources}",
        f"# Classifiers alone: {total:.2e} floating-point operations, an estimated {hours:,.1f} hours of one H100",
        f"# at {H100_FLOPS / 1e12:.0f} TFLOP/s.",
        f"# Each line can be interrupted and typed again. All of it and the table: {again}",
        "set -e",
    ]
    text = "\n".join([*head, *lines]) + "\n"
    (out / "commands.sh").write_text(text, encoding="utf-8")
    return text


def _image_commands(runner: Runner, arm: Arm, folder: Path) -> list[str]:
    if not arm.ratio:
        return []
    recipe, where = runner.generator_recipe(arm), runner.generator_folder(arm)
    path = folder / f"generator-{where.name}.toml"
    path.write_text(to_toml(recipe.to_dict()), encoding="utf-8")
    images = runner.images_path(arm)
    card, n = where / f"{recipe.name}.json", runner.images_needed(arm)
    lines = [
        f"robustgen generator train {path} --out {where}",
        f"robustgen generator sample {card} --n {n} --sampler {runner.sampler(arm)} --out {images}",
    ]
    if not arm.conditional:
        lines.append(f"robustgen train {runner.scale.labeller} --out {runner.labeller_card.parent}")
    return lines


def _training_commands(runner: Runner, arm: Arm, folder: Path) -> list[str]:
    lines = []
    for seed in runner.scale.seeds:
        recipe = runner.classifier_recipe(arm, seed)
        key = runner.key(recipe)
        path = folder / f"{key}.toml"
        path.write_text(to_toml(recipe.to_dict()), encoding="utf-8")
        where = runner.out / "classifiers" / key
        lines.append(f"robustgen train {path} --out {where}")
        given = f"--data {recipe.data.name} --threat {recipe.training.threat} --plan {runner.scale.plan}"
        for which in runner.table.attacked:
            weights = where / f"{recipe.name}{'-last' if which == 'last' else ''}.safetensors"
            run = runner.out / "runs" / f"{key}-{which}"
            card = where / f"{recipe.name}.json"
            lines += [f"robustgen eval {card} --weights {weights} {given} -n {runner.scale.n} --out {run}"]
    return lines


def _cost(recipe: Recipe, scale: Scale) -> _Cost:
    """Of one training, by counting multiplications of one forward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from robustgen.nets import build_network, input_layer

    with torch.device("meta"):
        network = build_network(recipe.network.architecture, **recipe.network.options).eval()
        size = _SIZES.get(recipe.data.name, (32, 32))
        x = torch.empty(1, input_layer(network)[1].in_channels, *size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x)
    real = recipe.data.images or scale.images
    images = recipe.training.epochs * real
    return _Cost(images, counter.get_total_flops() * forwards_per_image(recipe) * images)


_SIZES = {"fashion-mnist": (28, 28), "cifar10": (32, 32)}


def to_toml(content: Mapping[str, Any]) -> str:
    """A recipe's tables as TOML; fields that are None are left out."""
    plain = {key: value for key, value in content.items() if not isinstance(value, Mapping) and value is not None}
    top = [f"{key} = {_value(value)}" for key, value in plain.items()]
    tables = []
    for key, table in content.items():
        if isinstance(table, Mapping):
            held = [f"{name} = {_value(value)}" for name, value in table.items() if value is not None and value != {}]
            tables.append("\n".join([f"[{key}]", *held]))
    return "\n\n".join(["\n".join(top), *tables]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)
