"""What attacks follow, measured on the bundled models: loss surfaces, transfer of directions, gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.attacks.base import Attack
from robustgen.attacks.losses import Margin, margin
from robustgen.attacks.pgd import PGD
from robustgen.cards import Card, bundled_cards
from robustgen.classifier import Classifier
from robustgen.classifiers import load_classifier
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.statistics import proportion
from robustgen.threat import ThreatModel

__all__ = [
    "ASCENT", "AXIS", "crossing", "final_points", "gradient_row", "honest_models", "nonlinearity", "picture_rows",
    "plane", "read_rows", "surface_row", "transfer",
]  # fmt: skip

AXIS = [round(0.01 * k, 2) for k in range(-10, 21)]  # of a plane, in pixels of [0, 1]
ASCENT = PGD(steps=20, loss=Margin())  # the cross-entropy of a sure network has no gradient left in float32
_BATCH = 250


def honest_models() -> dict[str, Classifier]:
    """The bundled classifiers of Fashion-MNIST but the decoys, by name."""
    cards = {name: Card.load(path) for name, path in bundled_cards().items()}
    return {
        name: load_classifier(name)
        for name, card in cards.items()
        if card.data == "fashion-mnist" and card.kind != "decoy"
    }


def final_points(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng
) -> Tensor:  # fmt: skip
    """(B, C, H, W) where an attack ends when nobody stops it at its first success."""
    oracle, parts = Oracle(model), []
    for at in range(0, len(x), _BATCH):
        rows = torch.arange(at, min(at + _BATCH, len(x)))
        state = attack.init(oracle, x[rows], y[rows], threat, rng.take(rows))
        for _ in range(attack.rounds):
            state = attack.step(oracle, state)
        parts.append(state.x_adv)
    return torch.cat(parts)


# ----------------------------------------------------------------------------------------------- surfaces


def plane(model: nn.Module, x: Tensor, y: Tensor, first: Tensor, second: Tensor) -> dict[str, list[str]]:
    """Loss and margin at x + s first + t second, a text a row: s along it, t from row to row, both over `AXIS`.

    Args:
        model: the classifier.
        x, y: an image (C, H, W) and its label ().
        first, second: directions (C, H, W) of size 1 in Linf; t is `AXIS` shifted to be even around 0.
    """
    steps = torch.tensor(AXIS)
    shift = (steps.max() + steps.min()) / 2
    points = x + steps[None, :, None, None, None] * first + (steps - shift)[:, None, None, None, None] * second
    with torch.no_grad():
        logits = torch.cat([model(row) for row in points])
    labels = y.expand(len(logits))
    found = {"loss": F.cross_entropy(logits, labels, reduction="none"), "margin": margin(logits, labels)}
    return {key: _texts(value.unflatten(0, (len(steps), -1))) for key, value in found.items()}


def _texts(table: Tensor) -> list[str]:
    return [" ".join(f"{value:.3g}" for value in row) for row in table.tolist()]


def read_rows(rows: Sequence[str]) -> list[list[float]]:
    """The numbers of a table that was written a text a row."""
    return [[float(value) for value in row.split()] for row in rows]


def surface_row(model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng) -> dict[str, Any]:
    """Loss and errors at the images, at as large a change of random signs, and at the end of PGD, over all images."""
    random = threat.project(x, x + threat.eps * rng.signs(x.shape[1:], "signs"))
    row: dict[str, Any] = {"classifier": model.card.name, "n": len(x)}
    for name, points in (("clean", x), ("random", random), ("pgd", final_points(ASCENT, model, x, y, threat, rng))):
        with torch.no_grad():
            logits = torch.cat([model(part) for part in points.split(_BATCH)])
        wrong = proportion(int((logits.argmax(1) != y).sum()), len(x))
        row[name] = {"loss": float(F.cross_entropy(logits, y)), "wrong": asdict(wrong)}
    return row


# ----------------------------------------------------------------------------------------------- transfer


def transfer(
    models: Mapping[str, nn.Module], attacks: Mapping[str, Attack], x: Tensor, y: Tensor, threat: ThreatModel,
    rng: ExampleRng,
) -> dict[str, Any]:  # fmt: skip
    """Whom the directions of one model mislead, over the images that all models get right.

    Returns:
        For each attack and source the share of these images that each target gets wrong, by the judge, with its
        interval; the same for random signs of the same size; and the mean cosine between the gradients of the margins
        of any two.
    """
    judges = {name: Judge(model, threat) for name, model in models.items()}
    right = torch.stack([judge.predict(x) == y for judge in judges.values()]).all(0).nonzero().flatten()
    x, y, rng = x[right], y[right], rng.take(right)

    def misled(points: Tensor) -> dict[str, Any]:
        counts = {target: int(judge(x, y, points).broken.sum()) for target, judge in judges.items()}
        return {target: asdict(proportion(count, len(x))) for target, count in counts.items()}

    success = {
        label: {source: misled(final_points(attack, model, x, y, threat, rng)) for source, model in models.items()}
        for label, attack in attacks.items()
    }
    random = misled(threat.project(x, x + threat.eps * rng.signs(x.shape[1:], "signs")))
    grads = {name: F.normalize(Oracle(model).grad(x, y, Margin()).grad.flatten(1)) for name, model in models.items()}
    cosine = {a: {b: float((grads[a] * grads[b]).sum(1).mean()) for b in grads} for a in grads}
    return {"n": len(x), "success": success, "random": random, "cosine": cosine}


# ----------------------------------------------------------------------------------------------- gradients


def gradient_row(model: Classifier, x: Tensor, y: Tensor, eps: float, rng: ExampleRng) -> dict[str, Any]:
    """How far the boundary is by the gradient, how far along it, and how straight the margin is within eps.

    Over the images that the model gets right: `by_gradient` margin / ||g||_1, the distance in Linf of a linear
    classifier with that margin and gradient; `along_sign` see `crossing`; `nonlinear` see `nonlinearity`.
    """
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero().flatten()
    x, y, rng = x[right], y[right], rng.take(right)
    grad = -Oracle(model).grad(x, y, Margin()).grad
    with torch.no_grad():
        by_gradient = margin(model(x), y) / grad.abs().flatten(1).sum(1)
    figures = {
        "by_gradient": by_gradient, "along_sign": crossing(model, x, y, -grad.sign()),
        "nonlinear": nonlinearity(model, x, y, grad, eps, rng),
    }  # fmt: skip
    middle = {key: float(value.median()) for key, value in figures.items()}
    quantiles = by_gradient.double().quantile(torch.linspace(0, 1, 41, dtype=torch.float64))
    crossed = figures["along_sign"].isfinite()
    return {
        "classifier": model.card.name, "n": len(x),
        **{key: value if math.isfinite(value) else None for key, value in middle.items()},
        "crossed": asdict(proportion(int(crossed.sum()), len(x))),
        "by_gradient_quantiles": [float(f"{value:.4g}") for value in quantiles],
    }  # fmt: skip


def crossing(model: nn.Module, x: Tensor, y: Tensor, direction: Tensor, step: float = 0.005) -> Tensor:
    """(B,) the least multiple of `step`, up to 0.5, at which x + s direction, clipped to [0, 1], is another class.

    Infinite where none is.
    """
    found = torch.full((len(x),), torch.inf)
    left = torch.arange(len(x))
    with torch.no_grad():
        for k in range(1, round(0.5 / step) + 1):
            points = (x[left] + k * step * direction[left]).clamp(0, 1)
            wrong = model(points).argmax(1) != y[left]
            found[left[wrong]] = k * step
            left = left[~wrong]
            if not len(left):
                break
    return found


def nonlinearity(
    model: nn.Module, x: Tensor, y: Tensor, grad: Tensor, eps: float, rng: ExampleRng, steps: int = 10
) -> Tensor:  # fmt: skip
    """(B,) max over |d| <= eps of |f(x + d) - f(x) - g.d| / (eps ||g||_1), f the margin and g its gradient.

    Source: the local linearity measure of Qin et al. 2019, arXiv:1907.02610, by sign ascent from random signs.
    Differs: of the margin instead of the cross-entropy, and as a share of what the gradient promises.
    """
    with torch.no_grad():
        base = margin(model(x), y)
    scale, delta = eps * grad.abs().flatten(1).sum(1), eps * rng.signs(x.shape[1:], "nonlinear")
    best = torch.zeros(len(x))
    for k in range(steps + 1):
        leaf = delta.detach().requires_grad_()
        error = (margin(model(x + leaf), y) - base - (grad * leaf).flatten(1).sum(1)).abs()
        best = torch.maximum(best, error.detach() / scale)
        if k < steps:
            (up,) = torch.autograd.grad(error.sum(), leaf)
            delta = (delta + eps / 4 * up.sign()).clamp(-eps, eps)
    return best


def picture_rows(image: Tensor) -> list[str]:
    """An image (H, W) in [-1, 1] as 8-bit numbers in hexadecimal, a text a row; 80 is 0."""
    levels = (128 + 127 * image.clamp(-1, 1)).round().to(torch.uint8)
    return [bytes(row.tolist()).hex() for row in levels]
