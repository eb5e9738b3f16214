"""Drawing images: image i depends on (seed, i) alone, whatever the batch size, the order or the rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustgen.generator.denoiser import Denoiser
from robustgen.generator.samplers import Noise, Sampler, denoise_with
from robustgen.rng import ExampleRng

__all__ = ["draw", "noise_of"]


def noise_of(rng: ExampleRng, shape: Sequence[int], device: torch.device) -> Noise:
    """Fresh noise for the steps of a sampler, one stream an image."""
    return lambda step: rng.normal(shape, "sampler", step, device).double()


@torch.no_grad()
def draw(
    denoiser: Denoiser,
    sampler: Sampler,
    ids: Sequence[int],
    label: Tensor | None = None,
    *,
    seed: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """Images from pure noise.

    Args:
        denoiser: the generator, on the device to use.
        sampler: see `robustgen.generator.samplers`.
        ids: which images.
        label: (N,) int64 class of each; None for none.
        seed: of every random number, 0 <= seed < 2^64.
        batch_size: images at a time; changes the result by rounding only.

    Returns:
        (N, C, H, W) float32 in about [-1, 1], not clipped, on the CPU.
    """
    where = next((t.device for t in [*denoiser.parameters(), *denoiser.buffers()]), torch.device("cpu"))
    sigmas, done = sampler.sigmas(denoiser), []
    for first in range(0, len(ids), batch_size):
        rng = ExampleRng.of(seed, list(ids[first : first + batch_size]))
        classes = None if label is None else label[first : first + batch_size].to(where)
        x = sigmas[0] * rng.normal(denoiser.shape, "latent", 0, where).double()
        image = sampler.run(denoise_with(denoiser, classes), x, sigmas, noise_of(rng, denoiser.shape, where))
        done.append(image.float().cpu())
    return torch.cat(done) if done else torch.zeros(0, *denoiser.shape)
