"""What the tests of attacks that see answers only share: rounds one by one, and classifiers that count or say less."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from robustgen.attacks.base import Attack
from robustgen.attacks.plans import parse_attack
from robustgen.engine import Outcome, run
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel


def rounds_of(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, count: int) -> list[Any]:
    """The first state, then the one after each of so many rounds; nobody leaves."""
    oracle = Oracle(model)
    states: list[Any] = [attack.init(oracle, x, y, threat, ExampleRng.of(0, range(len(x))))]
    for _ in range(count):
        states.append(attack.step(oracle, states[-1]))
    return states


def outcomes_of(
    text: str, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, batch_size: int = 64,
    judge: nn.Module | None = None,
) -> list[Outcome]:  # fmt: skip
    """What the engine leaves of each example; the judge may have a network of its own."""
    found: dict[int, Outcome] = {}
    run(
        parse_attack(text), Oracle(model), Judge(model if judge is None else judge, threat),
        lambda ids: (x[list(ids)], y[list(ids)]), range(len(x)), threat, seed=0, batch_size=batch_size,
        finish=lambda o: found.__setitem__(o.id, o),
    )  # fmt: skip
    return [found[id_] for id_ in range(len(x))]


class Counting(nn.Module):
    """Passes images on and counts them in `images`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.images = net, 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        self.images += len(x)
        logits: Tensor = self.net(x)
        return logits


class LabelsOnly(nn.Module):
    """The class that a network predicts, one-hot, and nothing else."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K), 1 at one class."""
        logits: Tensor = self.net(x)
        return one_hot(logits.argmax(1), logits.shape[1]).to(logits)


def double_task(shape: tuple[int, int, int], n: int = 3, classes: int = 4, seed: int = 0) -> tuple[Any, Tensor, Tensor]:
    """A conv net in float64, images away from the walls of [0, 1], and the labels that it gives them."""
    from tests.helpers import make_convnet

    model = make_convnet(channels=shape[0], classes=classes, seed=seed).double()
    x = 0.2 + 0.6 * torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed + 7)).double()
    return model, x, model(x).argmax(1)
