"""Sampling: quality and images a second of our samplers, and of diffusers' on the same network.

    python -m robustgen.benchmarks.speed.generator_sampling [--n 1500] [--only NAME ...] [--cas NAME ...] [--pairs 5]

Quality is the Fréchet distance to as many training images, in the features of fmnist-standard, with its standard error:
"equal" means that the difference is within two standard errors of it. Diffusers' side is what its pipelines do: the
network in float32 with its own blocks and attention, one scheduler step after the other; without Karras' sigmas, with
which its DPM-Solver++ ends in an IndexError on this schedule. Speeds that are compared are
measured again, both sides in turn: at equal evaluations, and each of our samplers beside the fastest of diffusers'
whose distance is equal to the best of diffusers'. Rows are kept by name, so that a run adds to what is stored.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from math import hypot
from typing import Any

import torch
from torch import Tensor

from robustgen.benchmarks.harness import RESULTS, compare, store
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.environment import tune_process
from robustgen.generator.cas import classification_accuracy_score
from robustgen.generator.denoiser import to_uint8
from robustgen.generator.distances import frechet_with_error
from robustgen.generator.draw import draw
from robustgen.generator.features import classifier_features
from robustgen.generator.generated import read_images
from robustgen.generator.load import load_generator
from robustgen.generator.network_denoiser import DdpmDenoiser
from robustgen.generator.samplers import parse_sampler

NAME = "speed-generator-sampling"
BATCH = 250
FEW = 250  # every distance is given at this N as well, which 1,000 evaluations an image can afford
OURS = (
    ("fmnist-edm", "heun:steps=18"),
    ("fmnist-edm", "heun:steps=10"),
    ("fmnist-edm", "heun:steps=5"),
    ("fmnist-edm", "dpm++:steps=10"),
    ("fmnist-ddpm", "heun:steps=10"),
    ("fmnist-ddpm", "heun:steps=5"),
    ("fmnist-ddpm", "dpm++:steps=10"),
    ("fmnist-ddpm", "dpm++:steps=8"),
    ("fmnist-ddpm", "dpm++:steps=6"),
    ("fmnist-ddpm", "dpm++:steps=5"),
    ("fmnist-ddpm", "ddim:steps=50"),
    ("fmnist-ddpm", "ancestral"),
)
THEIRS = (
    "DDIM 50",
    "DPM-Solver++ 20",
    "DPM-Solver++ 10",
    "DPM-Solver++ 8",
    "DPM-Solver++ 6",
    "UniPC 10",
    "UniPC 8",
    "UniPC 6",
)
EQUAL_EVALUATIONS = (("fmnist-ddpm, ddim:steps=50", "DDIM 50"), ("fmnist-ddpm, dpm++:steps=10", "DPM-Solver++ 10"))

Make = Callable[[int], Tensor]  # number of images -> (N, H, W, C) uint8
Side = tuple[Callable[[str, str], Make], str, str]  # what makes it, network, sampler


def our_side(name: str, sampler: str) -> Make:
    """Ours, in the form it chooses."""
    denoiser, method = load_generator(name).denoiser, parse_sampler(sampler)
    return lambda n: to_uint8(draw(denoiser, method, range(n), torch.arange(n) % denoiser.classes, batch_size=BATCH))


def plain_network(name: str) -> tuple[DdpmDenoiser, torch.nn.Module]:
    """One of our DDPMs with the blocks and the attention that diffusers gives it."""
    from robustgen.generator.card import GeneratorCard, bundled_generators
    from robustgen.generator.network import Unet

    path = bundled_generators()[name]
    denoiser = GeneratorCard.load(path).load_denoiser(path.parent, torch.device("cpu"))
    assert isinstance(denoiser, DdpmDenoiser)
    ours = denoiser.network
    assert isinstance(ours, Unet)
    network = Unet(ours.settings, ours.shape, ours.classes, noise_scale=ours.noise_scale).eval()
    network.load_state_dict(ours.state_dict())
    return denoiser, network


def diffusers_side(name: str, kind: str) -> Make:
    """What a pipeline of diffusers does, on the network of one of our DDPMs."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    denoiser, network = plain_network(name)
    family, steps = kind.rsplit(" ", 1)
    makers: dict[str, Any] = {
        "DDIM": DDIMScheduler,
        "DPM-Solver++": DPMSolverMultistepScheduler,
        "UniPC": UniPCMultistepScheduler,
    }
    kept = denoiser.schedule.alphas_cumprod
    betas = 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])
    given: dict[str, Any] = {"prediction_type": denoiser.prediction, "trained_betas": betas.tolist()}
    scheduler = makers[family](num_train_timesteps=denoiser.schedule.steps, **given)

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
                out = network(scheduler.scale_model_input(x, t), t.expand(size), label)
                x = scheduler.step(out, t, x).prev_sample
            parts.append(to_uint8(x))
        return torch.cat(parts)

    return make


def main() -> None:
    """Draw, compare, store after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1500)
    parser.add_argument("--only", nargs="*", help="rows whose name contains one of these")
    parser.add_argument("--cas", nargs="*", default=[], help="rows that also get a classification accuracy score")
    parser.add_argument("--pairs", type=int, default=5, help="of timings in turn; 0 for none")
    given = parser.parse_args()
    tune_process()
    makers: dict[str, tuple[Callable[[str, str], Make], str, str]] = {
        f"ours: {name}, {sampler}": (our_side, name, sampler) for name, sampler in OURS
    }
    makers |= {f"diffusers: fmnist-ddpm, {kind}": (diffusers_side, "fmnist-ddpm", kind) for kind in THEIRS}
    wanted = {n for n in makers if given.only is None or any(word in n for word in given.only)}
    held = RESULTS / f"{NAME}.json"
    result: dict[str, Any] = json.loads(held.read_text(encoding="utf-8")) if held.exists() else {}
    rows: dict[str, Any] = result.get("rows", {}) if result.get("n") == given.n else {}
    timed: dict[str, Any] = result.get("timed", {})
    judge = Judge(given.n)
    rows.setdefault("training images, other ones", judge.row(judge.training[-given.n :]))
    for name, (side, network, kind) in makers.items():
        if name in wanted:
            wants_score = any(word in name for word in given.cas)
            rows[name] = _drawn(side(network, kind), judge, FEW if name.endswith("ancestral") else given.n, wants_score)
            print(name, rows[name], flush=True)
            _store(given.n, rows, timed)
    for ours, theirs in _to_compare(rows) if given.pairs else ():
        mine, other = (side(name, kind) for side, name, kind in (makers[ours], makers[theirs]))
        summary = compare(partial(mine, BATCH), partial(other, BATCH), pairs=given.pairs).summary()
        timed[f"{ours} / {theirs}"] = summary
        print(ours, theirs, summary["ratio"], flush=True)
        print(_store(given.n, rows, timed))


class Judge:
    """Fréchet distances to the first training images, and classification accuracy scores on test images."""

    def __init__(self, n: int) -> None:
        self.features = classifier_features(load_classifier("fmnist-standard"))
        self.training = read_images(load_data("fashion-mnist", split="train"))
        self.reference = self.features(self.training[:n]).values

    def row(self, images: Tensor, *, score: bool = False) -> dict[str, Any]:
        """Distances at N = all and at N = `FEW`."""
        values = self.features(images).values
        row: dict[str, Any] = {"n": len(images)}
        for key, n in (("fd", len(images)), ("fd_few", FEW)):
            distance = frechet_with_error(values[:n], self.reference[:n])
            row[key], row[f"{key}_error"] = distance.value, distance.error
        if score:
            labels = torch.arange(len(images)) % 10
            row["cas"] = asdict(classification_accuracy_score(images, labels, load_data("fashion-mnist")).accuracy)
        return row


def _drawn(make: Make, judge: Judge, n: int, score: bool) -> dict[str, Any]:
    make(2)
    begun = time.perf_counter()
    images = make(n)
    seconds = time.perf_counter() - begun
    return {**judge.row(images, score=score), "seconds": seconds, "images_per_second": n / seconds}


def _to_compare(rows: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of names: at equal evaluations, and at quality equal to the best of diffusers'."""
    pairs = [(f"ours: {ours}", f"diffusers: fmnist-ddpm, {theirs}") for ours, theirs in EQUAL_EVALUATIONS]
    theirs = {name: row for name, row in rows.items() if name.startswith("diffusers")}
    ours = {name: row for name, row in rows.items() if name.startswith("ours: fmnist-ddpm")}
    if theirs:
        best = min(theirs.values(), key=lambda row: row["fd"])
        fastest = [
            max((name for name in side if _as_good(side[name], best)), key=lambda n: side[n]["images_per_second"])
            for side in (ours, theirs)
            if any(_as_good(row, best) for row in side.values())
        ]
        if len(fastest) == 2 and tuple(fastest) not in pairs:
            pairs.append((fastest[0], fastest[1]))
    return [pair for pair in pairs if set(pair) <= set(rows)]


def _as_good(row: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether a distance is below the best one, or above by less than two standard errors of the difference."""
    same_n: bool = row["n"] == best["n"]
    return same_n and row["fd"] - best["fd"] <= 2 * hypot(row["fd_error"], best["fd_error"])


def _store(n: int, rows: dict[str, Any], timed: dict[str, Any]) -> Any:
    return store(NAME, {"n": n, "few": FEW, "rows": rows, "timed": timed}, module="speed.generator_sampling")


if __name__ == "__main__":
    main()
