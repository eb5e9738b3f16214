"""APGD against the reference implementation from the same start: the largest difference of the loss sequences.

In float64 only rounding is left. In float32 both follow the same path until rounding flips the sign of some gradient.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import robustgen
from robustgen.attacks.apgd import APGDCE
from robustgen.attacks.losses import CE
from robustgen.benchmarks.harness import store
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

STEPS, IMAGES = 100, 64


def our_losses(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """Our start (B, C, H, W) and the loss at each of the 101 points, (101, B)."""
    attack, oracle = APGDCE(steps=STEPS), Oracle(model)
    state: Any = attack.init(oracle, x, y, threat, ExampleRng.of(0, range(len(x))))
    start, losses = state.x_next, []
    for _ in range(attack.rounds):
        state = attack.step(oracle, state)
        losses.append(CE()(state.logits, y))
    return start, torch.stack(losses)


def reference_losses(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, start: Tensor) -> Tensor:
    """The same for pyautoattack, read off the images that it sends through the model."""
    from pyautoattack.autopgd_base import APGDAttack

    losses: list[Tensor] = []

    def spy(images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        losses.append(CE()(logits.detach(), y))
        return logits

    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    attack = APGDAttack(spy, n_iter=STEPS, norm=norm, eps=threat.eps, seed=0, device="cpu")
    attack.init_hyperparam(x)
    attack.attack_single_run(x, y, x_init=start)
    return torch.stack(losses)


def main() -> None:
    """Measure, print, store."""
    classifier, data = robustgen.load_classifier("fmnist-at"), robustgen.load_data("fmnist-test-1k")
    images, y = data.batch(range(IMAGES))
    rows = []
    for text in ("linf:0.125", "l2:1.5"):  # exact in float32, in which the reference keeps its step sizes
        for dtype in (torch.float64, torch.float32):
            model, x = copy.deepcopy(classifier).to(dtype), images.to(dtype)
            threat = ThreatModel.parse(text)
            start, ours = our_losses(model, x, y, threat)
            gap = (ours - reference_losses(model, x, y, threat, start)).abs()
            row = {
                "threat": text,
                "dtype": str(dtype),
                "max_difference": float(gap.amax()),
                "median": float(gap.median()),
            }
            rows.append(row)
            print(row)
    print(store("apgd_reference", {"images": IMAGES, "steps": STEPS, "rows": rows}))


if __name__ == "__main__":
    main()
