"""What `robustgen generator info` shows: each generator, or what a recipe's network would be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from robustgen.environment import pick_device
from robustgen.generator.card import bundled_generators
from robustgen.generator.info import measure_cost
from robustgen.generator.load import load_generator
from robustgen.generator.network import Unet, prepare_for
from robustgen.generator.network_denoiser import EdmDenoiser
from robustgen.generator.recipe import list_generator_recipes, load_generator_recipe

__all__ = ["overview"]

_SHAPES = {"fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}  # of recipes, whose data need not be at hand


def overview(names: Sequence[str] | None, device: str, precision: str) -> list[dict[str, Any]]:
    """One row a generator or recipe: name, shape, classes, weights, mflops, images_per_second, form.

    Raises:
        SpecError: nothing of that name.
    """
    bundled, recipes = bundled_generators(), list_generator_recipes()
    wanted = names if names is not None else [*bundled, *(name for name in recipes if name not in bundled)]
    return [
        _of_recipe(name) if name in recipes and name not in bundled else _of_generator(name, device, precision)
        for name in wanted
    ]


def _of_generator(name: str, device: str, precision: str) -> dict[str, Any]:
    generator = load_generator(name, device=pick_device(device), precision=precision)
    cost = measure_cost(generator.denoiser)
    return {
        "name": name,
        "shape": list(generator.denoiser.shape),
        "classes": generator.denoiser.classes,
        "weights": cost.weights,
        "mflops": cost.mflops,
        "images_per_second": cost.images_per_second,
        "form": f"{generator.precision} on {device}",
    }


def _of_recipe(name: str) -> dict[str, Any]:
    """On the meta device, where nothing is computed: a network of the paper's size needs no memory there."""
    recipe = load_generator_recipe(name)
    shape = _SHAPES.get(recipe.data.name, (3, 32, 32))
    classes = 10 if recipe.data.conditional else 0
    with torch.device("meta"):
        unet = Unet(recipe.network, shape, classes, augmented=recipe.training.augment > 0)
        denoiser = EdmDenoiser(unet, shape, classes, sigma_data=0.5, mean=(0.0,) * shape[0])
    prepare_for(unet, torch.device("meta"))
    cost = measure_cost(denoiser, seconds=0)
    return {
        "name": name,
        "shape": list(shape),
        "classes": classes,
        "weights": cost.weights,
        "mflops": cost.mflops,
        "images_per_second": None,
        "form": "recipe",
    }
