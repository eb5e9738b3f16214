"""Sampling: quality and images a second of our samplers, and of diffusers' on the same network.

    python -m robustgen.benchmarks.speed.generator_sampling [--n 5000] [--only NAME ...]

Quality is the Fréchet distance to as many training images, in the features of fmnist-standard, with its standard error:
"equal" means within two of them. Seconds are of one process, one side after the other. Diffusers' side is what its
pipelines do: the network in float32 with its own attention, one scheduler step after the other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustgen.benchmarks.harness import store
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.environment import tune_process
from robustgen.generator.denoiser import to_uint8
from robustgen.generator.distances import frechet_with_error
from robustgen.generator.draw import draw
from robustgen.generator.features import classifier_features
from robustgen.generator.generated import read_images
from robustgen.generator.load import load_generator
from robustgen.generator.network_denoiser import DdpmDenoiser
from robustgen.generator.samplers import parse_sampler

BATCH = 250
OURS = (
    ("fmnist-edm", "heun:steps=18"),
    ("fmnist-edm", "heun:steps=10"),
    ("fmnist-edm", "heun:steps=5"),
    ("fmnist-edm", "dpm++:steps=10"),
    ("fmnist-ddpm", "heun:steps=10"),
    ("fmnist-ddpm", "dpm++:steps=10"),
    ("fmnist-ddpm", "ddim:steps=50"),
    ("fmnist-ddpm", "ancestral"),
)
THEIRS = ("DDIM 50", "DDIM 20", "DPM-Solver++ 20", "DPM-Solver++ 10", "DPM-Solver++ 10, Karras")

Make = Callable[[int], Tensor]  # number of images -> (N, H, W, C) uint8


def our_side(name: str, sampler: str, precision: str = "auto") -> Make:
    """Ours, in the form it chooses."""
    denoiser, method = load_generator(name, precision=precision).denoiser, parse_sampler(sampler)
    return lambda n: to_uint8(draw(denoiser, method, range(n), torch.arange(n) % denoiser.classes, batch_size=BATCH))


def diffusers_side(name: str, kind: str) -> Make:
    """What a pipeline of diffusers does, on the network of one of our DDPMs."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    denoiser = load_generator(name, precision="float32").denoiser
    assert isinstance(denoiser, DdpmDenoiser)
    processor: Any = AttnProcessor2_0()
    for module in denoiser.modules():
        if isinstance(module, Attention):
            module.set_processor(processor)
    family, steps = kind.split(",", maxsplit=1)[0].rsplit(" ", 1)
    scheduler: Any = DDIMScheduler(num_train_timesteps=1000)
    if family.startswith("DPM"):
        scheduler = DPMSolverMultistepScheduler(num_train_timesteps=1000, use_karras_sigmas="Karras" in kind)

    @torch.no_grad()
    def make(n: int) -> Tensor:
        parts = []
        for first in range(0, n, BATCH):
            size = min(BATCH, n - first)
            label = (torch.arange(size) + first) % denoiser.classes
            generator = torch.Generator().manual_seed(first)
            scheduler.set_timesteps(int(steps))
            x = torch.randn(size, *denoiser.shape, generator=generator)
            for t in scheduler.timesteps:
                out = denoiser.network(scheduler.scale_model_input(x, t), t.expand(size), label)
                x = scheduler.step(out, t, x).prev_sample
            parts.append(to_uint8(x))
        return torch.cat(parts)

    return make


def main() -> None:
    """Draw, compare, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--only", nargs="*", help="rows whose name contains one of these")
    given = parser.parse_args()
    tune_process()
    sides = {f"ours: {name}, {sampler}": our_side(name, sampler) for name, sampler in OURS}
    sides |= {f"diffusers: fmnist-ddpm, {kind}": diffusers_side("fmnist-ddpm", kind) for kind in THEIRS}
    if given.only:
        sides = {name: make for name, make in sides.items() if any(word in name for word in given.only)}
    features = classifier_features(load_classifier("fmnist-standard"))
    training = read_images(load_data("fashion-mnist", split="train"))
    rows: list[dict[str, Any]] = [
        _row("training images, other half", given.n, training[-given.n :], features, training)
    ]
    for name, make in sides.items():
        n = given.n // 10 if name.endswith("ancestral") else given.n
        begun = time.perf_counter()
        images = make(n)
        seconds = time.perf_counter() - begun
        rows.append({**_row(name, n, images, features, training), "seconds": seconds, "images_per_second": n / seconds})
        print(rows[-1], flush=True)
    print(store("speed-generator-sampling", {"n": given.n, "rows": rows}, module="speed.generator_sampling"))


def _row(name: str, n: int, images: Tensor, features: Any, training: Tensor) -> dict[str, Any]:
    ours, reference = features(images), features(training[:n])
    distance = frechet_with_error(ours.values, reference.values)
    return {"name": name, "n": n, "fd": distance.value, "fd_error": distance.error}


if __name__ == "__main__":
    main()
