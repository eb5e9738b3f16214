"""The same attacks measured by AttackBench's own code: its distances, its count of passes, its optimality.

Prints one line an attack, for a check of `robustgen.benchmarks.distances` by others' hands: AttackBench takes the
nearest adversarial image that it saw on the way, in float32, counts values and not pixels in L0, and counts the passes
of our judge as ours. No limit is set on them, since every attack has its budget already. Stores nothing.

Source: Cinà et al. 2024, arXiv:2404.19460; the package attackbenchlib.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robustgen
from robustgen.benchmarks.distances import BUDGET, CLASSIFIERS, images, run_ours
from robustgen.benchmarks.distances_peers import INSTALL, Entrant, entrants, missing_libraries
from robustgen.environment import tune_process
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.threat import BALLS, Norm, ThreatModel


def as_attack(entrant: Entrant, norm: Norm) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """An attack as AttackBench calls it: model, inputs (B, C, H, W), labels (B,) -> images."""

    def attack(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        if entrant.library == "robustgen":
            judge = Judge(model, ThreatModel.unbounded(norm))
            outcomes = run_ours(entrant, Oracle(model), judge, inputs, labels)
            return torch.stack([x if o.x_adv is None else o.x_adv for o, x in zip(outcomes, inputs, strict=True)])
        return entrant.run(model, inputs, labels)

    return attack


def main() -> None:
    """Run every attack through AttackBench and print what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", choices=CLASSIFIERS, default="fmnist-at-l2")
    parser.add_argument("--norm", choices=(*BALLS, "l0"), default="l2")
    parser.add_argument("--budget", type=int, default=BUDGET, help="forwards and backwards an image")
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    if missing_libraries() or find_spec("attackbench") is None:
        raise SystemExit(f"This needs other libraries and AttackBench; type {INSTALL} attackbenchlib.")
    tune_process()
    bench = importlib.import_module("attackbench")
    classifier = robustgen.load_classifier(options.classifier)
    x, y = images(classifier, None, options.images)
    listed = entrants(options.norm, options.budget, int(classifier(x[:1]).shape[1]))
    found = []
    for entrant in listed:
        data = DataLoader(TensorDataset(x, y), batch_size=len(x))
        found.append(
            bench.run_attack(
                classifier, data, as_attack(entrant, options.norm), options.norm, query_budget=None, use_cached=False
            )
        )
    names = [f"{entrant.library} {entrant.attack}" for entrant in listed]
    said = bench.compare_attacks_optimality(found, threat_model=options.norm, attack_names=names)
    for name, result in zip(names, found, strict=True):
        spent = (sum(result[key]) / len(x) for key in ("num_forwards", "num_backwards"))
        middle = sorted(result["distances"][options.norm])[(len(x) - 1) // 2]
        print(
            f"{name:<34} optimality {said['optimality_scores'][name]:.3f}, median {middle:.4g}, "
            + " + ".join(f"{passes:.0f}" for passes in spent)
        )


if __name__ == "__main__":
    main()
