"""Generators small enough for tests: networks of a few hundred weights, and recipes that take a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustgen.generator.network_denoiser import DdpmDenoiser, EdmDenoiser
from robustgen.generator.recipe import GeneratorRecipe
from robustgen.generator.views import linear_schedule

RECIPE = {
    "name": "tiny",
    "description": "A generator for tests.",
    "seed": 3,
    "data": {"name": "npz:{path}", "validation": 16},
    "network": {"channels": [8, 8], "attention": [0, 1], "head": 8, "groups": 4},
    "objective": {"kind": "edm"},
    "training": {
        "images": 160,
        "batch_size": 8,
        "lr": 1e-2,
        "warmup": 40,
        "label_dropout": 0.2,
        "precision": "float32",
    },
}


class TinyNetwork(nn.Module):
    """F(x, c_noise, label): a convolution, the noise level and the class added, float64."""

    def __init__(self, channels: int = 1, classes: int = 0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.into = nn.Conv2d(channels, 4, 3, padding=1)
        self.out = nn.Conv2d(4, channels, 3, padding=1)
        self.embed = nn.Embedding(classes + 1, 4)
        self.double()

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        rows = torch.zeros(len(x), dtype=torch.long) if label is None else label + 1
        level = torch.tanh(c_noise.to(x.dtype) / 50).reshape(-1, 1, 1, 1)
        out: Tensor = self.out(torch.tanh(self.into(x) + level + self.embed(rows)[:, :, None, None]))
        return out


def make_ddpm(steps: int = 60, classes: int = 0, shape: tuple[int, int, int] = (1, 4, 4)) -> DdpmDenoiser:
    """A random discrete denoiser in float64."""
    with torch.random.fork_rng(devices=[]):
        network = TinyNetwork(shape[0], classes)
    network.requires_grad_(False)
    return DdpmDenoiser(network, shape, classes, schedule=linear_schedule(steps))


def make_edm(classes: int = 3, shape: tuple[int, int, int] = (1, 4, 4)) -> EdmDenoiser:
    """A random EDM denoiser in float64."""
    with torch.random.fork_rng(devices=[]):
        network = TinyNetwork(shape[0], classes)
    network.requires_grad_(False)
    return EdmDenoiser(network, shape, classes, sigma_data=0.5, mean=(0.1,) * shape[0])


def write_images(folder: Path, n: int = 64, shape: tuple[int, int, int] = (8, 8, 1), classes: int = 2) -> Path:
    """A file of random bright bars, one place a class."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    images = rng.integers(0, 40, (n, *shape))
    for k in range(classes):
        images[labels == k, :, (2 * k) % shape[1]] += 150
    path = folder / "bars.npz"
    np.savez(path, image=images.astype(np.uint8), label=labels)
    return path


def tiny_recipe(path: Path, **training: object) -> GeneratorRecipe:
    """The recipe above on that file, with some settings of the training changed."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in RECIPE.items()}
    content["data"] = {**RECIPE["data"], "name": f"npz:{path}"}  # type: ignore[dict-item]
    content["training"] = {**RECIPE["training"], **training}  # type: ignore[dict-item]
    return GeneratorRecipe.from_dict(content)
