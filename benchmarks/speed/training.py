"""A step of adversarial training: ours against the plain float32 loop of the same recipe, and against ART's trainer.

    python -m robustgen.benchmarks.speed.training

The plain loop is what the papers' repositories do: TRADES with a forward pass for the attack's target, one a step of
the attack and two for the loss, PGD-AT with one a step and one for the loss; float32, PyTorch's default layout, SGD.
ART's trainers get the same network, optimizer, batch, steps and step length. Ours is `Trainer.step`, as
`robustgen train` runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.benchmarks.harness import compare, store
from robustgen.environment import tune_process
from robustgen.nets import build_network
from robustgen.threat import ThreatModel
from robustgen.training.data import TrainingData
from robustgen.training.recipe import Recipe, load_recipe
from robustgen.training.trainer import Trainer, resolve_precision

STEPS, PAIRS = 4, 3  # of the optimizer, a side and pair
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fmnist-at", "TRADES, 10 steps", {"method": "trades", "options": {"beta": 5.0}, "steps": 10, "rel_step": 0.25}),
    ("fmnist-at", "PGD-AT, 10 steps", {"method": "pgd-at", "steps": 10, "rel_step": 0.25}),
    ("cifar10-at", "TRADES, 10 steps", {"method": "trades", "options": {"beta": 5.0}, "steps": 10, "rel_step": 0.25}),
)

Run = Callable[[], None]


def our_side(recipe: Recipe, data: TrainingData, precision: str) -> Run:
    """Steps of the trainer."""
    trainer = Trainer(recipe, data, torch.device("cpu"), precision)

    def run() -> None:
        for _ in range(STEPS):
            trainer.step()

    return run


def network_of(recipe: Recipe) -> nn.Module:
    """The recipe's network with its normalisation in front, as one module."""
    network = build_network(recipe.network.architecture, **recipe.network.options)
    if not recipe.data.mean:
        return network
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (recipe.data.mean, recipe.data.std))

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.network((x - mean) / std)
            return out

    return Normalised()


def plain_side(recipe: Recipe, data: TrainingData) -> Run:
    """The loop as one would write it down."""
    training, threat = recipe.training, ThreatModel.parse(recipe.training.threat or "")
    model, batch = network_of(recipe).train(), recipe.training.batch_size
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    method: Any = training.make_method()
    length, trades = (training.rel_step or 0.25) * threat.eps, training.method == "trades"

    def attack(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            target = F.softmax(model(x), dim=1) if trades else None
        x_adv = (x + (2 * torch.rand_like(x) - 1) * threat.eps).clamp(0, 1)
        for _ in range(method.steps):
            x_adv.requires_grad_()
            out = model(x_adv)
            if target is None:
                loss = F.cross_entropy(out, y)
            else:
                loss = F.kl_div(F.log_softmax(out, dim=1), target, reduction="sum")
            (grad,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + length * grad.sign()
            x_adv = torch.min(torch.max(x_adv, x - threat.eps), x + threat.eps).clamp(0, 1)
        return x_adv.detach()

    def run() -> None:
        for _ in range(STEPS):
            rows = torch.randint(len(data.x), (batch,))
            x, y = data.x[rows].float() / 255, data.y[rows]
            x_adv = attack(x, y)
            if trades:
                clean, robust = model(x), model(x_adv)
                loss = F.cross_entropy(clean, y, label_smoothing=0.1) + 5.0 * F.kl_div(
                    F.log_softmax(robust, dim=1), F.softmax(clean, dim=1), reduction="batchmean"
                )
            else:
                loss = F.cross_entropy(model(x_adv), y, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def art_side(recipe: Recipe, data: TrainingData) -> Run:
    """ART's trainer on as many images."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainer, AdversarialTrainerTRADESPyTorch
    from art.estimators.classification import PyTorchClassifier

    training, threat = recipe.training, ThreatModel.parse(recipe.training.threat or "")
    model, method = network_of(recipe), training.make_method()
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), data.dataset.shape, data.dataset.classes,
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    attack = ProjectedGradientDescent(
        classifier, norm=np.inf, eps=threat.eps, eps_step=(training.rel_step or 0.25) * threat.eps,
        max_iter=method.steps, num_random_init=1, batch_size=training.batch_size, verbose=False,
    )  # fmt: skip
    n = STEPS * training.batch_size
    x, y = (data.x[:n].float() / 255).numpy(), np.eye(data.dataset.classes, dtype=np.float32)[data.y[:n].numpy()]
    if training.method == "trades":
        trainer: Any = AdversarialTrainerTRADESPyTorch(classifier, attack, beta=5.0)
        return lambda: trainer.fit(x, y, nb_epochs=1, batch_size=training.batch_size)
    madry = AdversarialTrainer(classifier, attack, ratio=1.0)
    return lambda: madry.fit(x, y, nb_epochs=1, batch_size=training.batch_size)


def main() -> None:
    """Measure, print, store."""
    tune_process()
    precision = resolve_precision("auto", torch.device("cpu"))
    rows = []
    for name, title, changes in CASES:
        recipe = load_recipe(name)
        recipe = replace(recipe, training=replace(recipe.training, **changes, ema_decay=0.995))
        data = TrainingData.load(
            recipe.data.name, data_dir=None, validation=1024, seed=0, batch_size=recipe.training.batch_size,
            augment=recipe.training.augment,
        )  # fmt: skip
        images = STEPS * recipe.training.batch_size
        ours = our_side(recipe, data, precision)
        for peer, side in (("plain float32 loop", plain_side(recipe, data)), ("ART", art_side(recipe, data))):
            summary = compare(ours, side, pairs=PAIRS).summary()
            rows.append({"network": name, "method": title, "peer": peer, "images": images, **summary})
            print(name, title, peer, summary["ratio"], images / min(summary["ours"]), "images/s", flush=True)
    what = f"batch of the recipe, {STEPS} steps a side, {PAIRS} pairs; ours in {precision}"
    print(store("speed-training", {"what": what, "rows": rows}, module="speed.training"))


if __name__ == "__main__":
    main()
