"""Why small changes mislead classifiers: what docs/why.md shows, measured, stored and drawn.

    python -m robustgen.benchmarks.why                       # all parts: measure, store, draw
    python -m robustgen.benchmarks.why transfer              # one of them
    python -m robustgen.benchmarks.why transfer --draw       # draw it again from what is stored

Each part writes results/why-PART.json and docs/why-PART.png. `dimension` needs the training images of Fashion-MNIST.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robustgen.attacks.base import Attack
from robustgen.attacks.fgsm import FGSM
from robustgen.attacks.losses import Margin
from robustgen.benchmarks.harness import store
from robustgen.benchmarks.tables import load_result
from robustgen.benchmarks.why_dimension import exponent, linear_row, linearisation, resize, train_linear
from robustgen.benchmarks.why_models import (
    ASCENT,
    AXIS,
    final_points,
    gradient_row,
    honest_models,
    picture_rows,
    plane,
    surface_row,
    transfer,
)
from robustgen.benchmarks.why_pictures import picture
from robustgen.data import load_data
from robustgen.environment import tune_process
from robustgen.judge import strict_float32
from robustgen.oracle import Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

__all__ = ["PARTS", "main"]

DOCS = Path(__file__).resolve().parent.parent / "docs"
DATA = "fmnist-test-1k"
THREAT = ThreatModel.parse("linf:0.1")  # that fmnist-at was trained for
PAIR = ("fmnist-standard", "fmnist-at")
SIDES = (4, 7, 14, 28, 56)
_TRAINED_ON = 20_000
_EPS = 8 / 255


def dimension() -> dict[str, Any]:
    """Linear classifiers at several resolutions, and the linearisation of networks."""
    training, test = load_data("fashion-mnist", split="train"), load_data(DATA)
    x, y = training.batch(range(_TRAINED_ON))
    z, labels = test.batch(range(len(test)))
    rows = []
    for side in SIDES:
        model = train_linear(resize(x, side), y, test.classes)
        rows.append(linear_row(model, resize(z, side), labels, _EPS, ExampleRng.of(0, range(len(test)))))
        print(rows[-1], flush=True)
    pixels = [row["pixels"] for row in rows]
    slopes = {key: exponent(pixels, [row[key] for row in rows]) for key in ("adversarial", "random")}
    for key in ("adversarial", "random"):
        slopes[f"{key}_by_weight"] = exponent(pixels, [row[key] / row["weight"] for row in rows])
    models = honest_models()
    sizes = [k / 255 for k in (1, 2, 4, 8, 12, 16, 24)]
    networks = [linearisation(models[name], test, range(500), sizes) for name in PAIR]
    return {"eps": _EPS, "trained_on": _TRAINED_ON, "test": len(test), "rows": rows, "exponents": slopes,
            "networks": networks}  # fmt: skip


def surface() -> dict[str, Any]:
    """Loss around two images along the adversarial direction and a random one; and errors over many images."""
    models, test = honest_models(), load_data(DATA)
    pair = [models[name] for name in PAIR]
    ids = list(range(300))
    x, y = test.batch(ids)
    rng = ExampleRng.of(0, ids)
    moved = [final_points(ASCENT, model, x, y, THREAT, rng) for model in pair]
    with torch.no_grad():
        (weak, strong), (weak_moved, strong_moved) = (
            [model(points).argmax(1) == y for model, points in zip(pair, both, strict=True)] for both in ((x, x), moved)
        )
    chosen = (weak & strong & ~weak_moved & strong_moved).nonzero().flatten()[:2].tolist()
    signs, planes = rng.signs(x.shape[1:], "direction"), []
    for k in chosen:
        for model, points in zip(pair, moved, strict=True):
            first = (points[k] - x[k]) / THREAT.eps
            found = plane(model, x[k], y[k], first, signs[k])
            planes.append({"classifier": model.card.name, "id": ids[k], "label": int(y[k]), **found})
    return {"threat": str(THREAT), "axis": AXIS, "planes": planes,
            "rows": [surface_row(model, x, y, THREAT, rng) for model in models.values()]}  # fmt: skip


def transfers() -> dict[str, Any]:
    """Directions of each bundled model, and of a linear classifier, against all of them."""
    training, test = load_data("fashion-mnist", split="train"), load_data(DATA)
    models: dict[str, torch.nn.Module] = {**honest_models()}
    models["linear"] = train_linear(*training.batch(range(_TRAINED_ON)), test.classes)
    ids = list(range(400))
    x, y = test.batch(ids)
    attacks: dict[str, Attack] = {"fgsm": FGSM(loss=Margin()), "pgd": ASCENT}
    return {"threat": str(THREAT), "names": list(models), "of": len(ids),
            **transfer(models, attacks, x, y, THREAT, ExampleRng.of(0, ids))}  # fmt: skip


def gradients() -> dict[str, Any]:
    """Gradients of both kinds of model as pictures, and what follows from them."""
    models, test = honest_models(), load_data(DATA)
    ids = list(range(300))
    x, y = test.batch(ids)
    rows = [gradient_row(model, x, y, THREAT.eps, ExampleRng.of(0, ids)) for model in models.values()]
    shown = [ids[int((y == label).nonzero()[0])] for label in (0, 1, 5, 8)]
    pictures = []
    for name in PAIR:
        grad = Oracle(models[name]).grad(x[shown], y[shown], Margin()).grad[:, 0]
        pictures.append([picture_rows(one / one.abs().max()) for one in grad])
    return {"threat": str(THREAT), "ids": shown, "names": list(PAIR), "images": [picture_rows(x[k, 0]) for k in shown],
            "gradients": pictures, "rows": rows}  # fmt: skip


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "dimension": dimension, "surface": surface, "transfer": transfers, "gradients": gradients,
}  # fmt: skip


def main() -> None:
    """Measure and store what is asked for, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all where none is named")
    parser.add_argument("--draw", action="store_true", help="only draw, from what is stored")
    given = parser.parse_args()
    for part in given.parts:
        if part not in PARTS:
            parser.error(f"there is no part '{part}'; known: {', '.join(PARTS)}.")
    tune_process()
    for part in given.parts or PARTS:
        if not given.draw:
            begun = time.perf_counter()
            with strict_float32():
                result = PARTS[part]()
            print(
                store(f"why-{part}", result, module=f"why {part}"), f"{time.perf_counter() - begun:.0f} s", flush=True
            )
        path = DOCS / f"why-{part}.png"
        picture(part, load_result(f"why-{part}")).savefig(path, dpi=100)
        print(path, flush=True)


if __name__ == "__main__":
    main()
