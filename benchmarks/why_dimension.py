"""The linear explanation, measured: many small changes add up in the direction of the weights, and nowhere else.

Source: Goodfellow et al. 2015, arXiv:1412.6572, section 3: for an activation w.x and a change eps sign(w) of the d
pixels it grows by eps ||w||_1 = eps m d, m being the mean size of a weight; a change of random signs, just as large,
gives eps ||w||_2 by its deviation, which grows as the root of d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.attacks.losses import Margin, margin
from robustgen.classifier import Classifier
from robustgen.dataset import Dataset
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.statistics import proportion

__all__ = ["exponent", "linear_row", "linearisation", "resize", "train_linear"]

_DECAY = 1e-4  # of the squared weights
_ROUNDS = 60  # of L-BFGS


def resize(x: Tensor, side: int) -> Tensor:
    """Square images (B, C, H, H) to (B, C, side, side): means of blocks, or bilinear where they grow."""
    if side > x.shape[2]:
        return F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(x, side)


def train_linear(x: Tensor, y: Tensor, classes: int) -> nn.Sequential:
    """Softmax regression of images (B, C, H, W) in [0, 1] with labels (B,), by L-BFGS from zero; frozen."""
    linear = nn.Linear(x[0].numel(), classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    flat = x.flatten(1)
    optimiser = torch.optim.LBFGS(linear.parameters(), max_iter=_ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(linear(flat), y) + _DECAY / 2 * linear.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(requires_grad=False)


def linear_row(model: nn.Sequential, x: Tensor, y: Tensor, eps: float, rng: ExampleRng) -> dict[str, Any]:
    """What changes of size eps do to a linear classifier, over the images that it gets right.

    Args:
        model: of `train_linear`.
        x, y: images (B, C, H, W) and labels (B,).
        eps: of each pixel; pixels may leave [0, 1], as in the explanation.
        rng: of the random signs.

    Returns:
        `adversarial` and `random`: mean size of the change of z_y - z_k, k the strongest other class, under
        -eps sign(w_y - w_k) and under random signs; `weight`: mean size of a weight of w_y - w_k; accuracies of all
        images: clean, under random signs, and under the best change of size eps (exact: every class is tried).
    """
    weight: Tensor = model[1].weight  # type: ignore[assignment]
    logits = model(x)
    right = logits.argmax(1) == y
    signs = rng.signs(x.shape[1:], "signs")
    gaps = logits.gather(1, y[:, None]) - logits  # (B, K), z_y - z_k
    reach = (weight[:, None] - weight[None]).abs().sum(2)[y]  # (B, K), ||w_y - w_k||_1
    survives = (gaps > eps * reach).sum(1) == logits.shape[1] - 1
    z, true, drawn = x[right], y[right], signs[right]
    rival = logits[right].scatter(1, true[:, None], -torch.inf).argmax(1)
    w = weight[true] - weight[rival]

    def gap(points: Tensor) -> Tensor:
        out = model(points)
        found: Tensor = (out.gather(1, true[:, None]) - out.gather(1, rival[:, None]))[:, 0]
        return found

    change = gap(z) - gap(z - eps * w.sign().reshape(z.shape))
    chance = (gap(z) - gap(z + eps * drawn)).abs()
    return {
        "side": x.shape[2], "pixels": x[0].numel(), "margin": float(gap(z).median()),
        "adversarial": float(change.mean()), "random": float(chance.mean()), "weight": float(w.abs().mean()),
        "clean": asdict(proportion(int(right.sum()), len(x))),
        "under_random": asdict(proportion(int((model(x + eps * signs).argmax(1) == y).sum()), len(x))),
        "under_adversarial": asdict(proportion(int(survives.sum()), len(x))),
    }  # fmt: skip


def exponent(pixels: Sequence[float], change: Sequence[float]) -> float:
    """The slope b of the line of least squares log change = a + b log pixels."""
    a, b = torch.tensor(pixels, dtype=torch.float64).log(), torch.tensor(change, dtype=torch.float64).log()
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / a.square().sum())


def linearisation(
    classifier: Classifier, dataset: Dataset, ids: Sequence[int], sizes: Sequence[float]
) -> dict[str, Any]:  # fmt: skip
    """What the gradient predicts of a network, and what comes true, over the images of `ids` that it gets right.

    Returns:
        For each eps of `sizes` the mean fall of the margin: `predicted` eps ||g||_1, `true` under -eps sign(g), and
        `random` its mean size under random signs; pixels may leave [0, 1].
    """
    x, y = dataset.batch(ids)
    with torch.no_grad():
        right = (classifier(x).argmax(1) == y).nonzero().flatten()
    x, y = x[right], y[right]
    grad = -Oracle(classifier).grad(x, y, Margin()).grad  # of the margin, which `Margin` has with a minus
    signs = ExampleRng.of(0, [ids[k] for k in right.tolist()]).signs(x.shape[1:], "signs")
    rows = []
    with torch.no_grad():
        before = margin(classifier(x), y)
        for eps in sizes:
            fall = before - margin(classifier(x - eps * grad.sign()), y)
            chance = (before - margin(classifier(x + eps * signs), y)).abs()
            predicted = eps * grad.abs().flatten(1).sum(1)
            figures = {"predicted": predicted, "true": fall, "random": chance}
            rows.append({"eps": eps, **{key: float(value.mean()) for key, value in figures.items()}})
    return {"classifier": classifier.card.name, "n": len(x), "margin": float(before.mean()), "rows": rows}
