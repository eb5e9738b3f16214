"""Images that are partly given: filling in a masked region, and walking from one image to another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser
from robustgen.generator.draw import noise_of
from robustgen.generator.samplers import Sampler, denoise_with
from robustgen.rng import ExampleRng

__all__ = ["inpaint", "interpolate", "slerp"]


@torch.no_grad()
def inpaint(
    denoiser: Denoiser,
    sampler: Sampler,
    x: Tensor,
    keep: Tensor,
    label: Tensor | None = None,
    *,
    rounds: int = 4,
    seed: int = 0,
    ids: Sequence[int] | None = None,
) -> Tensor:
    """Draw anew what is masked, so that it fits what is kept.

    At each level of noise the kept region is the given image plus noise, the rest one step of the flow; then noise is
    added back and the step repeated, so that the two regions come to agree.

    Source: Lugmayr et al. 2022, arXiv:2201.09865 (RePaint), algorithm 1, with jumps of length 1.
    Differs: the step is DDPM's posterior on the sampler's levels, not on all T.

    Args:
        denoiser: the generator.
        sampler: whose levels of noise are used.
        x: (B, C, H, W) float32 in [-1, 1].
        keep: (B, 1, H, W) or (1, 1, H, W), 1 where x is kept, 0 where it is drawn anew.
        label: (B,) int64 classes; None for none.
        rounds: how often each step is done (the paper's U).
        seed: of every random number.
        ids: stream of each row; None for 0, 1, ...

    Returns:
        (B, C, H, W) float32; where `keep` is 1 exactly x.

    Raises:
        SpecError: the mask does not fit the images, or rounds < 1.
    """
    if keep.ndim != 4 or keep.shape[1] != 1 or keep.shape[2:] != x.shape[2:] or keep.shape[0] not in (1, len(x)):
        raise SpecError(f"the mask must be (B, 1, H, W) for images {tuple(x.shape)}, got {tuple(keep.shape)}.")
    if rounds < 1:
        raise SpecError(f"inpaint: rounds must be >= 1, got {rounds}.")
    where = x.device
    rng = ExampleRng.of(seed, list(range(len(x))) if ids is None else list(ids))
    noise, denoise = noise_of(rng, x.shape[1:], where), denoise_with(denoiser, label)
    sigmas, given, kept = sampler.sigmas(denoiser), x.double(), keep.to(where).double()
    state, draw = sigmas[0] * noise(0), 1
    for sigma, after in pairwise(sigmas):
        ratio = after**2 / sigma**2
        for again in range(rounds if after > 0 else 1):
            if again:  # back up from `after` to `sigma`
                state = state + (sigma**2 - after**2).sqrt() * noise(draw)
                draw += 1
            unknown = (1 - ratio) * denoise(state, sigma) + ratio * state
            unknown = unknown + after * (1 - ratio).sqrt() * noise(draw)
            known = given + after * noise(draw + 1)
            draw += 2
            state = kept * known + (1 - kept) * unknown
    return torch.where(kept > 0, given * kept + (1 - kept) * state, state).float()


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Spherical interpolation of two noises (D,), at shares (S,) in [0, 1]; keeps the norm of normal noise.

    Source: Shoemake 1985, and Song et al. 2021, arXiv:2010.02502, appendix D.5.
    """
    cos = torch.dot(a, b) / (a.norm() * b.norm())
    angle = torch.arccos(cos.clamp(-1, 1))
    if float(angle.sin().abs()) < 1e-6:  # the same direction
        return torch.lerp(a[None], b[None], share[:, None])
    first, second = ((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin()
    return first[:, None] * a + second[:, None] * b


@torch.no_grad()
def interpolate(
    denoiser: Denoiser,
    sampler: Sampler,
    first: int,
    last: int,
    count: int,
    label: int | None = None,
    *,
    seed: int = 0,
) -> Tensor:
    """Images between image `first` and image `last` of a seed, by a deterministic sampler from noises in between.

    Returns:
        (count, C, H, W) float32 in about [-1, 1]; the ends are what `draw` gives for these ids and this class.

    Raises:
        SpecError: fewer than two images asked for.
    """
    if count < 2:
        raise SpecError(f"interpolation needs two images or more, got {count}.")
    where = next((t.device for t in [*denoiser.parameters(), *denoiser.buffers()]), torch.device("cpu"))
    ends = ExampleRng.of(seed, [first, last]).normal(denoiser.shape, "latent", 0, where).double().flatten(1)
    latents = slerp(ends[0], ends[1], torch.linspace(0, 1, count, dtype=torch.float64, device=where))
    classes = None if label is None else torch.full((count,), label, device=where)
    sigmas = sampler.sigmas(denoiser)
    rng = ExampleRng.of(seed, [first] * count)
    x = sigmas[0] * latents.reshape(count, *denoiser.shape)
    return sampler.run(denoise_with(denoiser, classes), x, sigmas, noise_of(rng, denoiser.shape, where)).float().cpu()
