"""Health checks: can attacks by gradient be believed on this classifier at all? Measured before the attack starts.

Each check measures one number on a few correctly classified images and raises its flag beyond a threshold; both go into
the record. What a flag means and what to do about it stands in flags.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustgen.attacks.losses import CE, Margin, margin
from robustgen.example import ExampleRecord
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

__all__ = [
    "Health",
    "black_box_wins",
    "broken_without_gradients",
    "inspect_classifier",
    "is_stochastic",
    "transfer_wins",
]


@dataclass(frozen=True, slots=True)
class Health:
    """What was measured, by flag, and which flags that raises."""

    measured: dict[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


_SAME = 1e-4  # relative distance of logits above which two passes differ
_ZERO_SHARE = 0.5
_MISMATCH = 0.25
_SWEEP_SHARE = 0.1
_RANGE_GAIN = 0.2
_RANDOM_ROWS = 32
_SWEEP_STEPS = 20
_REACH = 8 / 255  # the scale of finite differences where there is no eps
_BLACK_BOX_SHARE = 0.01


def inspect_classifier(classifier: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int = 0) -> Health:
    """Run every check on a small batch.

    Args:
        classifier: the reference, float32, eval mode, frozen.
        x: (B, C, H, W) in [0, 1], clean images.
        y: (B,) int64 labels.
        threat: gives the scale of the finite differences.
        seed: of the random directions.
    """
    with torch.no_grad():
        logits = classifier(x)
    right = logits.argmax(1) == y
    measured = {"dynamic": _dynamic(classifier, x), "range": _range_gain(classifier, x, y)}
    x, y = x[right], y[right]
    if len(x) and logits.shape[1] > 1:  # with one class nothing can be broken, and no gradient is missed
        rng = ExampleRng.of(seed, range(len(x)))
        measured["randomised"] = _randomness(classifier, x)
        measured["zero-gradient"] = _zero_share(classifier, x, y)
        measured["eps-sweep"] = _sweep(classifier, x, y, rng)
        if measured["randomised"] <= _SAME:  # between two draws nothing is to be learnt of jumps
            measured["gradient-mismatch"] = _mismatch(classifier, x, y, threat, rng)
    limits = {
        "dynamic": 0.0, "range": _RANGE_GAIN, "randomised": _SAME, "zero-gradient": _ZERO_SHARE,
        "gradient-mismatch": _MISMATCH, "eps-sweep": _SWEEP_SHARE,
    }  # fmt: skip
    return Health(measured, tuple(sorted(name for name, value in measured.items() if value > limits[name])))


def is_stochastic(classifier: nn.Module, x: Tensor) -> bool:
    """Whether the same images (B, C, H, W) get other logits when they are sent again."""
    return _randomness(classifier, x) > _SAME


def black_box_wins(won: int, left: int) -> bool:
    """Did an attack without gradients break at least 1 %, and three, of what all white-box attacks had left standing?

    Args:
        won: examples for which `broken_without_gradients` holds.
        left: examples that nothing broke.
    """
    return won >= max(3, _BLACK_BOX_SHARE * (won + left))


def broken_without_gradients(example: ExampleRecord) -> bool:
    """Broken by forwards alone, although other attacks had tried it with gradients before."""
    if example.broken_by not in example.cost:
        return False
    tried_with_gradients = any(backwards for _, backwards in example.cost.values())
    return tried_with_gradients and example.cost[str(example.broken_by)][1] == 0


def transfer_wins(white: Sequence[ExampleRecord], moved: Sequence[ExampleRecord]) -> bool:
    """Did attacks on surrogates break more than the same attacks on the target, and images that these left standing?

    Args:
        white, moved: the examples of both runs, the same ones; the count of images is that of `black_box_wins`.
    """
    robust = {e.id for e in white if e.robust}
    standing = [e for e in moved if e.id in robust]
    won = sum(not e.robust for e in standing)
    return sum(e.robust for e in moved) < len(robust) and black_box_wins(won, len(standing) - won)


def _randomness(classifier: nn.Module, x: Tensor, passes: int = 10) -> float:
    """Largest distance between unit logit vectors of the same image in several passes; 2 where a prediction changed."""
    x = x[:_RANDOM_ROWS]
    with torch.no_grad():
        outputs = [classifier(x) for _ in range(passes)]
    unit = [z / z.norm(dim=1, keepdim=True).clamp(min=1e-12) for z in outputs]
    gap = max(float((z - unit[0]).norm(dim=1).amax()) for z in unit[1:])
    return 2.0 if any(bool((z.argmax(1) != outputs[0].argmax(1)).any()) for z in outputs[1:]) else gap


def _zero_share(classifier: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images at which the gradient of the cross-entropy is exactly zero."""
    grad = Oracle(classifier).grad(x, y, CE()).grad
    return float((grad.flatten(1).abs().sum(1) == 0).float().mean())


def _mismatch(classifier: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng) -> float:
    """How far finite differences of the margin are from what the gradient promises, 0 (equal) to 1 (unrelated).

    Both are taken between the same two points, eps / 4 apart along random signs: the mean gradient at five places on
    the way times the way must be the change of the loss, by the fundamental theorem of calculus, unless it jumps.
    """
    size = x[0].numel()
    reach = {"linf": threat.eps, "l2": threat.eps / size**0.5, "l1": 4 * threat.eps / size}.get(threat.norm, _REACH)
    way = 0.25 * (reach if threat.bounded else _REACH) * rng.signs(tuple(x.shape[1:]), "mismatch", device=x.device)
    nodes, weights = _gauss_legendre(8)
    oracle, loss = Oracle(classifier), Margin()
    promised = torch.zeros(len(x), device=x.device)
    for node, weight in zip(nodes, weights, strict=True):
        promised += weight * (oracle.grad(x + node * way, y, loss).grad * way).flatten(1).sum(1)
    with torch.no_grad():
        change = margin(classifier(x), y) - margin(classifier(x + way), y)
    return float((change - promised).abs().sum() / (change.abs() + promised.abs()).sum().clamp(min=1e-12))


def _gauss_legendre(points: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of quadrature on [0, 1]."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(points)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def _sweep(classifier: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> float:
    """Share of images standing after ascent on the cross-entropy that may go anywhere in [0, 1]."""
    oracle, loss = Oracle(classifier), CE()
    anywhere = ThreatModel("linf", 1.0)
    x_adv, images = anywhere.random_start(x, rng, "sweep").lerp(x, 0.9), len(x)
    for k in range(_SWEEP_STEPS):
        query = oracle.grad(x_adv, y, loss)
        step = 0.1 * (1 - k / _SWEEP_STEPS) + 0.02
        standing = query.logits.argmax(1) == y
        x_adv = anywhere.project(x, x_adv + step * anywhere.steepest(query.grad))[standing]
        x, y = x[standing], y[standing]
        if not len(x):
            break
    return len(x) / images


def _range_gain(classifier: nn.Module, x: Tensor, y: Tensor) -> float:
    """Gain in accuracy by the best of the usual other input ranges."""
    ranges: tuple[Callable[[Tensor], Tensor], ...] = (lambda z: 255 * z, lambda z: 2 * z - 1, lambda z: z / 255)

    def accuracy(z: Tensor) -> float:
        with torch.no_grad():
            return float((classifier(z).argmax(1) == y).float().mean())

    return max(accuracy(change(x)) for change in ranges) - accuracy(x)


def _dynamic(classifier: nn.Module, x: Tensor) -> float:
    """1 when a forward pass calls torch.autograd.grad or .backward(), else 0."""
    with _watch_autograd() as calls, torch.no_grad():
        classifier(x[:2])
    return float(bool(calls))


@contextmanager
def _watch_autograd() -> Iterator[list[str]]:
    """Names of autograd entry points called inside the block; everything is put back afterwards."""
    calls: list[str] = []
    places = ((torch.autograd, "grad"), (torch.autograd, "backward"), (Tensor, "backward"))
    held = [(owner, name, getattr(owner, name)) for owner, name in places]

    def spy(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object, **options: object) -> object:
            calls.append(name)
            return real(*args, **options)

        return called

    try:
        for owner, name, real in held:
            setattr(owner, name, spy(name, real))
        yield calls
    finally:
        for owner, name, real in held:
            setattr(owner, name, real)
