"""Training a generator: our step against the plain loop of diffusers' training example, same network, batch and loss.

The plain loop does what the example for unconditional generation does in each step: add noise by the scheduler, predict
it, mean squared error, clip gradients, AdamW, cosine schedule, EMA. Data loading is left out: on both sides the images
are in memory. Ours is `GeneratorTrainer.step` with the DDPM loss, in float32 and, where the processor has it, bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel

from robustgen.benchmarks.harness import compare, store
from robustgen.environment import tune_process
from robustgen.generator.network import Unet
from robustgen.generator.recipe import load_generator_recipe
from robustgen.generator.trainer import GeneratorTrainer
from robustgen.precision import has_bfloat16
from robustgen.ranks import Ranks
from robustgen.training.data import TrainingData

STEPS = 12  # a side and pair
PAIRS = 5


def plain_loop(data: TrainingData, recipe: Any) -> Callable[[], None]:
    """The example's loop, as it stands: float32, the network as diffusers makes it."""
    torch.manual_seed(0)
    batch = recipe.training.batch_size
    model = Unet(recipe.network, data.dataset.shape, data.dataset.classes).train()
    scheduler: Any = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=500, num_training_steps=10_000)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True)
    x, y = data.x.float().div(127.5).sub(1), data.y

    def run() -> None:
        for _ in range(STEPS):
            rows = torch.randint(len(x), (batch,))
            clean, label = x[rows], y[rows]
            noise = torch.randn_like(clean)
            t = torch.randint(0, 1000, (batch,))
            noisy = scheduler.add_noise(clean, noise, t)
            loss = F.mse_loss(model(noisy, t, label), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ema.step(model.parameters())

    return run


def our_loop(data: TrainingData, recipe: Any, precision: str) -> Callable[[], None]:
    """Our trainer's steps."""
    trainer = GeneratorTrainer(recipe, data, torch.device("cpu"), precision, Ranks())

    def run() -> None:
        for _ in range(STEPS):
            trainer.step()

    return run


def main() -> None:
    """Measure, print, store."""
    tune_process()
    recipe = load_generator_recipe("fmnist-ddpm")
    recipe = replace(recipe, training=replace(recipe.training, warmup=0))
    batch = recipe.training.batch_size
    data = TrainingData.load(
        recipe.data.name, data_dir=None, validation=recipe.data.validation, seed=0, batch_size=batch, augment=()
    )
    result: dict[str, Any] = {
        "what": f"network of fmnist-ddpm, DDPM loss, batch {batch}, {STEPS} steps a side, {PAIRS} pairs",
        "images": STEPS * batch,
    }
    for precision in ("float32", "bfloat16") if has_bfloat16(torch.device("cpu")) else ("float32",):
        side = compare(our_loop(data, recipe, precision), plain_loop(data, recipe), pairs=PAIRS)
        summary = side.summary()
        result[f"ours in {precision} / plain loop in float32"] = summary
        rates = [STEPS * batch / sorted(seconds)[PAIRS // 2] for seconds in (side.ours, side.theirs)]
        print(f"{precision}: {rates[0]:.0f} against {rates[1]:.0f} images/s, ratio {summary['ratio']['median']:.2f}")
    print(store("speed-generator-training", result, module="speed.generator_training"))


if __name__ == "__main__":
    main()
