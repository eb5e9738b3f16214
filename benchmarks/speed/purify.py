"""Purification: our exact gradient against the least it can take and against obvious code; images a second.

least: of a checkpointed gradient, two passes forward and one backward through the denoiser a step, measured alone.
obvious: plain autograd through a loop that keeps every step, on the network as diffusers makes it.
pipeline: what an img2img pipeline of diffusers does from t*, DDIM, as many evaluations of the same network.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustgen.benchmarks.harness import compare, store
from robustgen.benchmarks.speed.generator_sampling import plain_network
from robustgen.data import load_data
from robustgen.environment import tune_process
from robustgen.generator.load import load_generator
from robustgen.generator.views import cosine_schedule
from robustgen.precision import has_bfloat16
from robustgen.purify.base import run_chain
from robustgen.purify.gradients import cross
from robustgen.purify.parse import parse_purifier
from robustgen.rng import ExampleRng

GENERATOR = "fmnist-ddpm"
STEPS, STEP, N = 20, 100, 64
SIGMA = float(cosine_schedule().sigmas[STEP - 1]) / 2  # in pixels: `step` would count in the linear schedule
PURIFIER = f"diffpure:sigma={SIGMA:.6f},steps={STEPS},reverse=ddim,generator={GENERATOR}"
PAIRS = 3


def our_gradient(x: Tensor, mode: Any = "full") -> Callable[[], Tensor]:
    """Of the sum of the purified pixels, in float32."""
    denoiser = load_generator(GENERATOR, precision="float32").denoiser
    purifier, rng = parse_purifier(PURIFIER), ExampleRng.of(0, range(len(x)))

    def run() -> Tensor:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(cross(purifier.chain(denoiser, rng), leaf, mode).sum(), leaf)
        return grad

    return run


def ddim_timesteps() -> list[int]:
    """The same t as ours."""
    return torch.linspace(STEP - 1, 0, STEPS, dtype=torch.float64).round().long().tolist()


def obvious_loop(network: Any, denoiser: Any, x: Tensor, noise: Tensor) -> Any:
    """DDIM from t* in DDPM's coordinates, as one writes it down; v or epsilon prediction."""
    abar = denoiser.schedule.alphas_cumprod
    steps = ddim_timesteps()
    u = abar[steps[0]].sqrt().float() * (2 * x - 1) + (1 - abar[steps[0]]).sqrt().float() * noise
    for k, t in enumerate(steps):
        here = abar[t].float()
        after = abar[steps[k + 1]].float() if k + 1 < len(steps) else torch.ones(())
        out = network(u, torch.full((len(u),), t), torch.full((len(u),), -1))
        if denoiser.prediction == "v_prediction":
            x0, eps = here.sqrt() * u - (1 - here).sqrt() * out, here.sqrt() * out + (1 - here).sqrt() * u
        else:
            x0, eps = (u - (1 - here).sqrt() * out) / here.sqrt(), out
        u = after.sqrt() * x0 + (1 - after).sqrt() * eps
    return (u + 1) / 2


def obvious_gradient(x: Tensor) -> Callable[[], Tensor]:
    """Plain autograd through the loop."""
    denoiser, network = plain_network(GENERATOR)
    network.requires_grad_(False)
    noise = ExampleRng.of(0, range(len(x))).normal(x.shape[1:], "diffuse")

    def run() -> Tensor:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(obvious_loop(network, denoiser, leaf, noise).sum(), leaf)
        return grad

    return run


def purified(x: Tensor, precision: str) -> Callable[[], Tensor]:
    """Ours, without a gradient."""
    denoiser = load_generator(GENERATOR, precision=precision).denoiser
    chain = parse_purifier(PURIFIER).chain(denoiser, ExampleRng.of(0, range(len(x))))

    def run() -> Tensor:
        with torch.no_grad():
            return run_chain(chain, x)

    return run


def pipeline(x: Tensor) -> Callable[[], Any]:
    """Diffusers' DDIM scheduler from t*, step by step, on the network as diffusers makes it."""
    from diffusers import DDIMScheduler

    denoiser, network = plain_network(GENERATOR)
    kept = denoiser.schedule.alphas_cumprod
    betas = (1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])).tolist()
    scheduler: Any = DDIMScheduler(
        num_train_timesteps=denoiser.schedule.steps, trained_betas=betas, prediction_type=denoiser.prediction,
        clip_sample=False,
    )  # fmt: skip
    scheduler.set_timesteps(denoiser.schedule.steps * STEPS // STEP)
    timesteps = scheduler.timesteps[-STEPS:]
    noise = ExampleRng.of(0, range(len(x))).normal(x.shape[1:], "diffuse")

    def run() -> Any:
        with torch.no_grad():
            u = scheduler.add_noise(2 * x - 1, noise, timesteps[:1].expand(len(x)))
            for t in timesteps:
                out = network(u, t.expand(len(u)), torch.full((len(u),), -1))
                u = scheduler.step(out, t, u).prev_sample
            return (u + 1) / 2

    return run


def least_seconds(x: Tensor) -> float:
    """Two passes forward and one backward through the denoiser, times the steps; best of five."""
    denoiser = load_generator(GENERATOR, precision="float32").denoiser
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        with torch.no_grad():
            denoiser(x, 0.3)
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(denoiser(leaf, 0.3).sum(), leaf)
        times.append(time.perf_counter() - begun)
    return STEPS * min(times[1:])


def main() -> None:
    """Measure, print, store."""
    tune_process()
    x, _ = load_data("fmnist-test-1k").batch(range(N))
    full, obvious = our_gradient(x), obvious_gradient(x)
    difference = float((full() - obvious()).norm() / obvious().norm())
    result: dict[str, Any] = {
        "what": f"{PURIFIER}, {N} images, {PAIRS} pairs", "images": N, "difference": difference,
        "full / obvious autograd": compare(full, obvious, pairs=PAIRS).summary(),
        "pipeline": {"ours in float32": compare(purified(x, "float32"), pipeline(x), pairs=PAIRS).summary()},
    }  # fmt: skip
    if has_bfloat16(torch.device("cpu")):
        result["pipeline"]["ours in bfloat16"] = compare(purified(x, "bfloat16"), pipeline(x), pairs=PAIRS).summary()
    least, begun = least_seconds(x), time.perf_counter()
    full()
    result["over_the_least"] = (time.perf_counter() - begun) / least
    print(result)
    print(store("speed-purify", result, module="speed.purify"))


if __name__ == "__main__":
    main()
