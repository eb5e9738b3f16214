"""Minimum-norm attacks, ours and others', as AttackBench's own code measures them: its budget, its optimality.

AttackBench takes the nearest adversarial image that it saw on the way, in float32, counts values and not pixels in L0,
and stops every attack at 2,000 forwards and backwards an image. It counts the passes of our judge as ours, so that ours
plan for them: how often each attack asks was counted on training images.

Its clamp of what an attack sends is switched off: from some release of torch on (seen in 2.14) the gradient of
`torch.clamp` is 0 at the bounds themselves, so that no attack could move a pixel that is black or white. Every attack
here stays in [0, 1] by itself; AttackBench counts those that do not.

Needs attackbenchlib beside the other libraries; give it an environment of its own, since it brings wandb.

Source: Cinà et al. 2024, arXiv:2404.19460; the package attackbenchlib.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robustgen
from robustgen.benchmarks.distances import images, run_ours
from robustgen.benchmarks.distances_peers import INSTALL, LIBRARIES, Entrant, entrants, missing_libraries
from robustgen.benchmarks.harness import Pieces, store
from robustgen.environment import tune_process
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.threat import Norm, ThreatModel

NAME = "distances_attackbench"
BUDGET = 2000  # AttackBench's own
JUDGED = {"cw": 240, "fab-t": 100}  # forwards of our judge, at most
JUDGED_ELSE = 50
CASES: tuple[tuple[str, Norm, int], ...] = (
    ("fmnist-at-l2", "l2", 48), ("fmnist-at-l2", "linf", 48), ("fmnist-at-l2", "l1", 48), ("fmnist-standard", "l0", 48),
    ("fmnist-standard", "l2", 48), ("cifar10-at", "l2", 16), ("cifar10-at", "linf", 16),
)  # fmt: skip


def as_attack(entrant: Entrant, norm: Norm) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """An attack as AttackBench calls it: model, inputs (B, C, H, W), labels (B,) -> images."""

    def attack(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        if entrant.library == "robustgen":
            judge = Judge(model, ThreatModel.unbounded(norm))
            outcomes = run_ours(entrant, Oracle(model), judge, inputs, labels)
            return torch.stack([x if o.x_adv is None else o.x_adv for o, x in zip(outcomes, inputs, strict=True)])
        return entrant.run(model, inputs, labels)

    return attack


def listed(norm: Norm, budget: int, classes: int) -> list[Entrant]:
    """Theirs at the whole budget, ours with room for the judge; one of ours that has no like elsewhere too."""
    return [
        entrants(norm, budget - JUDGED.get(one.attack, JUDGED_ELSE), classes)[k] if one.library == "robustgen" else one
        for k, one in enumerate(entrants(norm, budget, classes))
    ]


def measure(name: str, norm: Norm, n: int, budget: int, data_dir: Path | None) -> dict[str, Any]:
    """One row: every attack through AttackBench."""
    bench, classifier = importlib.import_module("attackbench"), robustgen.load_classifier(name)
    wrap = importlib.import_module("attackbench.models.benchmodel_wrapper").BenchModel
    x, y = images(classifier, data_dir, n)
    entered, found = listed(norm, budget, int(classifier(x[:1]).shape[1])), []
    for entrant in entered:
        data = DataLoader(TensorDataset(x, y), batch_size=len(x))
        found.append(
            bench.run_attack(
                wrap(classifier, enforce_box=False),
                data,
                as_attack(entrant, norm),
                norm,
                query_budget=budget,
                use_cached=False,
                debug=True,
            )
        )
    names = [f"{k} {entrant.library} {entrant.attack}" for k, entrant in enumerate(entered)]
    scores = bench.compare_attacks_optimality(found, threat_model=norm, attack_names=names)["optimality_scores"]
    attacks = [
        _said(entrant, result, float(scores[label]), norm)
        for entrant, label, result in zip(entered, names, found, strict=True)
    ]
    return {"classifier": name, "norm": norm, "images": n, "budget": budget, "attacks": attacks}


def _said(entrant: Entrant, result: dict[str, Any], optimality: float, norm: Norm) -> dict[str, Any]:
    spent = {key: sum(result[f"num_{key}"]) / len(result["num_forwards"]) for key in ("forwards", "backwards")}
    distances: Sequence[float] = sorted(result["distances"][norm])
    middle = distances[(len(distances) - 1) // 2]
    said = {
        "library": entrant.library, "attack": entrant.attack, "like": entrant.like, "optimality": optimality,
        "median": middle if middle < float("inf") else None, "outside": sum(result["box_failures"]), **spent,
    }  # fmt: skip
    print("  {library} {attack}: optimality {optimality:.3f}, median {median}".format(**said), flush=True)
    return said


def main() -> None:
    """Run every attack through AttackBench, print what it says, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=BUDGET, help="forwards and backwards an image")
    parser.add_argument("--images", type=int, help="instead of what each classifier has")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies; by default $ROBUSTGEN_DATA")
    parser.add_argument("--work", type=Path, default=Path("runs") / "attackbench", help="for what is done already")
    parser.add_argument("--dry", action="store_true", help="store nothing")
    options = parser.parse_args()
    if missing_libraries() or find_spec("attackbench") is None:
        raise SystemExit(f"This needs other libraries and AttackBench; type {INSTALL} attackbenchlib.")
    tune_process()
    piece = Pieces(options.work)
    rows = [
        piece(f"{name}-{norm}", measure, name, norm, options.images or n, options.budget, options.data_dir)
        for name, norm, n in CASES
    ]
    if not options.dry:
        packages = ("attackbenchlib", *LIBRARIES.values())
        print(store(NAME, {"rows": rows, "libraries": {package: version(package) for package in packages}}))


if __name__ == "__main__":
    main()
