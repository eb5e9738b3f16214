"""Defences against patches under attacks that know them: certified ones beside their certificates, and one empirical.

Two classifiers are trained first, each by `robustgen train RECIPE --data-dir DATA`: fmnist-cutout and fmnist-ablation.
Then `python -m robustgen.benchmarks.patch_defences`. What is done is kept below --work.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import robustgen
from robustgen.benchmarks.harness import Pieces, store
from robustgen.certify.patch_attack_run import PatchAttackRequest, attack_patch_run
from robustgen.certify.patches import PatchRequest
from robustgen.certify.patches_run import certify_against_patches
from robustgen.environment import tune_process
from robustgen.progress import Silent

CERTIFIED: dict[str, dict[str, Any]] = {
    "fmnist-standard": {"patches": (6,), "n": 25},
    "fmnist-cutout": {"patches": (6,), "n": 30},
    "fmnist-ablation": {"patches": (6,), "method": "band", "n": 25},
}
PLACES, STEPS = 2, 15  # of the attack on certified defences
CLASSIFIER, THREAT, N = "fmnist-standard", "patch:6x6", 20
SMOOTHED = ("lgs:window=5,overlap=2,threshold=0.1",)


def beside(work: Path, name: str, classifier: str) -> dict[str, Any]:
    """Certify, then attack all that the defence gets right; both go on where they were stopped."""
    asked = CERTIFIED[name]
    run = work / f"certified-{name}"
    certify_against_patches(PatchRequest(classifier=classifier, **asked), out=run, device="auto", progress=Silent())
    request = PatchAttackRequest(run=run, classifier=classifier, places=PLACES, steps=STEPS)
    found = attack_patch_run(request, device="auto", progress=Silent())
    return {**{key: found[key] for key in ("method", "n", "rows", "spec")}, "classifier": name}


def smoothed(work: Path, number: int, purifier: str | None) -> dict[str, Any]:
    """The ladder of attacks on a purifier, or the plan for patches without one."""
    record = robustgen.evaluate(
        CLASSIFIER, "fmnist-test-1k", THREAT, purify=purifier, n=N, out=work / f"smoothed-{number}", precision="float32"
    )
    figures = {"clean": asdict(record.clean_accuracy), "robust": asdict(record.robust_accuracy)}
    rungs = [{"name": attack.name, "broken": attack.broken} for attack in record.attacks]
    return {"purifier": purifier, "n": record.n, **figures, "rungs": rungs, "flags": list(record.flags)}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    folder = "folder that `robustgen train` wrote the classifiers to"
    parser.add_argument("trained", type=Path, nargs="?", default=Path("trained"), help=folder)
    parser.add_argument("--work", type=Path, default=Path("runs") / "patch_defences")
    parser.add_argument("--seconds", type=float, help="no piece begins after so many; the same command goes on")
    options = parser.parse_args()
    cards = {name: options.trained / name / f"{name}.json" for name in CERTIFIED}
    cards["fmnist-standard"] = Path("fmnist-standard")
    missing = [name for name, card in cards.items() if card.suffix and not card.is_file()]
    if missing:
        raise SystemExit(f"{options.trained} lacks {', '.join(missing)}; train them by `robustgen train` first.")
    tune_process()
    piece = Pieces(options.work, options.seconds)
    certified = [piece(f"beside-{name}", beside, options.work, name, str(card)) for name, card in cards.items()]
    ladders = [
        piece(f"ladder-{number}", smoothed, options.work, number, purifier)
        for number, purifier in enumerate((None, *SMOOTHED))
    ]
    what = f"{CLASSIFIER}, the first {N} embedded images, {THREAT}"
    print(store("patch_defences", {"certified": certified, "ladders": ladders, "what": what}))


if __name__ == "__main__":
    main()
