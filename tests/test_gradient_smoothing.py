"""Local gradient smoothing: the formula of the paper in plain loops, its gradient, and an attack that crosses it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import robustgen
from robustgen.attacks.plans import Rung
from robustgen.errors import SpecError
from robustgen.prepare import prepare
from robustgen.purify.base import run_chain
from robustgen.purify.gradient_smoothing import GradientSmoothing, local_gradients, smooth_gradients
from robustgen.purify.gradients import cross
from robustgen.purify.parse import describe, parse_purifier
from robustgen.request import Request
from robustgen.rng import ExampleRng
from robustgen.verify import verify_run


def by_loops(image: np.ndarray, window: int, overlap: int, threshold: float, smoothing: float) -> np.ndarray:
    """Pixel by pixel, for one image (C, H, W)."""
    grey = image.mean(0)
    height, width = grey.shape
    g = np.zeros((height, width))
    for a in range(height):
        for b in range(width):
            down = grey[a + 1, b] - grey[a, b] if a + 1 < height else 0.0
            across = grey[a, b + 1] - grey[a, b] if b + 1 < width else 0.0
            g[a, b] = math.hypot(down, across)
    g = (g - g.min()) / (g.max() - g.min())
    kept = np.zeros_like(g)

    def starts(side: int) -> list[int]:
        found = [k * (window - overlap) for k in range(side) if k * (window - overlap) + window < side]
        return [*found, max(0, side - window)]

    for top in starts(height):
        for left in starts(width):
            part = (slice(top, top + window), slice(left, left + window))
            if g[part].sum() / g[part].size > threshold:
                kept[part] = g[part]
    return image * (1 - np.clip(smoothing * kept, 0, 1))


def smooth_with_noise(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """(1, C, H, W) float64: a slope, and noise in the lower right corner."""
    x = torch.linspace(0.2, 0.8, shape[2], dtype=torch.float64).expand(1, *shape).clone()
    noise = torch.rand((shape[0], 5, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[0, :, -5:, -5:] = noise
    return x


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 12)])
@pytest.mark.parametrize(
    "given", [{"window": 5, "overlap": 2}, {"window": 7, "overlap": 0, "threshold": 0.0}, {"window": 40}]
)
def test_the_formula(shape: tuple[int, int, int], given: dict[str, float]) -> None:
    """As the loops say; rows of a batch do not see each other."""
    settings = GradientSmoothing(**given)  # type: ignore[arg-type]
    batch = torch.cat([smooth_with_noise(shape, seed) for seed in range(3)])
    out = smooth_gradients(batch, settings)
    for image, found in zip(batch.numpy(), out.numpy(), strict=True):
        expected = by_loops(image, settings.window, settings.overlap, settings.threshold, settings.smoothing)
        assert np.allclose(found, expected, atol=1e-12)


def test_noise_is_darkened_and_a_slope_stays() -> None:
    """The corner loses most of its light, the rest none; an image of one colour stays as it is."""
    x = smooth_with_noise((1, 20, 20))
    out = smooth_gradients(x, GradientSmoothing(window=5, overlap=2, threshold=0.2))
    assert torch.equal(out[..., :12, :12], x[..., :12, :12])
    assert float(out[..., -5:, -5:].mean()) < 0.5 * float(x[..., -5:, -5:].mean())
    flat = torch.full((2, 3, 9, 9), 0.3)
    assert torch.equal(smooth_gradients(flat, GradientSmoothing(threshold=0.0)), flat)
    assert not bool(local_gradients(flat).any())


def test_gradient_is_exact_where_there_is_one() -> None:
    """Central differences in float64, away from ties and from the threshold; checkpointed as plain autograd has it."""
    chain = GradientSmoothing(window=4, overlap=1, threshold=0.15).chain(None, ExampleRng.of(0, [0]))
    leaf = torch.rand((1, 2, 7, 6), generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cross(chain, z, "full"), (leaf,), eps=1e-7, atol=1e-5)
    flat = torch.zeros((1, 1, 8, 8), requires_grad=True)
    (grad,) = torch.autograd.grad(cross(chain, flat, "full").sum(), flat)
    assert bool(grad.isfinite().all()), "a flat image has a gradient too"


def test_the_choice_of_windows_has_no_gradient() -> None:
    """What a window's mean is does not pull at the image: only pixels, their neighbours and the largest g do."""
    settings = GradientSmoothing(window=4, overlap=0, threshold=0.0)
    x = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(run_chain(settings.chain(None, ExampleRng.of(0, [0])), x)[0, 0, 0, 0], x)
    g = local_gradients(x.detach())[0, 0]
    extreme = torch.stack([g.flatten().argmax(), g.flatten().argmin()])
    near = {(0, 0), (0, 1), (1, 0)}
    for row, column in ((int(k) // 8, int(k) % 8) for k in extreme):
        near |= {(row, column), (row, column + 1), (row + 1, column)}
    assert {tuple(place) for place in grad[0, 0].nonzero().tolist()} <= near


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lgs:window=0", "lgs: window must be a whole number >= 1"),
        ("lgs:window=5,overlap=5", "overlap must be 0 to 4"),
        ("lgs:threshold=1", r"threshold must be a number in \[0, 1\)"),
        ("lgs:smoothing=-1", "smoothing must be a number >= 0"),
        ("lgs:lambda=2", "unknown"),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    """In a sentence that names the setting."""
    with pytest.raises(SpecError, match=message):
        parse_purifier(text)


def test_it_is_typed_as_the_paper_has_it() -> None:
    """Its constants are the defaults."""
    assert describe(parse_purifier("lgs")) == describe(
        parse_purifier("lgs:window=15,overlap=5,threshold=0.1,smoothing=2.3")
    )


def test_a_ladder_is_the_default() -> None:
    """Transfer, BPDA, exact gradients, random search; each query is one draw, since nothing here is random."""
    job = prepare(Request(classifier="fmnist-standard", purify="lgs:window=5,overlap=2", threat="patch:6x6", n=2))
    assert job.plan.name == "adaptive"
    rungs = [rung for rung in job.plan.attacks if isinstance(rung, Rung)]
    assert [("transfer", 1), ("bpda", 1), ("full", 1), ("none", 1)] == [(rung.crossing, rung.eot) for rung in rungs]
    assert "gradient-weaker-than-full" not in job.flags


def test_who_crosses_it_breaks_more(tmp_path: Path) -> None:
    """Without a gradient the windows are tried blindly; with the exact one more falls, and every witness is judged."""
    broken = {}
    for gradient in ("none", "full"):
        record = robustgen.evaluate(
            "fmnist-standard", threat="patch:6x6", purify="lgs:window=5,overlap=2", gradient=gradient, n=8,
            attacks="patch-pgd:places=3:keep=1:steps=6", precision="float32", out=tmp_path / gradient,
        )  # fmt: skip
        broken[gradient] = record.attacks[-1].broken
        assert ("gradient-weaker-than-full" in record.flags) is (gradient == "none")
    assert broken["full"] > broken["none"]
    assert verify_run(tmp_path / "full").holds
