"""Blocks about what comes along: how long the bundled classifiers and generators were trained, by their own logs."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from robustgen.benchmarks.tables import load_result, markdown_table, source
from robustgen.cards import bundled_cards
from robustgen.generator.card import GeneratorCard, bundled_generators
from robustgen.statistics import Estimate

__all__ = ["bundled_generators_table", "bundled_trainings", "retrained"]

_LOGS = Path(__file__).resolve().parent.parent / "robustgen" / "zoo" / "log"


def bundled_trainings() -> str:
    """Epochs, steps and minutes of each bundled classifier, from the log that its training wrote."""
    rows = []
    for name in bundled_cards():
        path = _LOGS / f"{name}.jsonl"
        if path.is_file():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            epochs = [line for line in lines if line["event"] == "epoch"]
            minutes = sum(line["seconds"] for line in epochs) / 60
            rows.append((name, str(len(epochs)), f"{epochs[-1]['step']:,}", f"{minutes:.0f}"))
    return (
        f"{markdown_table(('classifier', 'epochs', 'steps', 'minutes'), rows)}\n\n"
        "Sums over the lines of `robustgen/zoo/log/NAME.jsonl`, which each training wrote on two cores."
    )


def bundled_generators_table() -> str:
    """Weights, training images and hours of each bundled generator, from its card and its file."""
    rows = []
    for name, path in bundled_generators().items():
        card = GeneratorCard.load(path)
        training = card.training
        rows.append(
            (
                name, card.kind, f"{_weights(path.with_name(str(card.weights))):,}",
                f"{training['training_images']:,}", f"{training['images']:,}", f"{training['seconds'] / 60:.0f}",
            )
        )  # fmt: skip
    header = ("generator", "view", "weights", "training images", "images shown", "minutes")
    return f"{markdown_table(header, rows)}\n\nFrom their cards and files of weights."


def retrained() -> str:
    """The classifier trained on generated images beside the first one, on all test images."""
    result = load_result("retrained")
    rows = [
        (
            row["classifier"],
            *(str(Estimate(**row[key])) for key in ("clean", "robust")),
            ", ".join(row["flags"]) or "none",
        )
        for row in result["rows"]
    ]
    rows.append(("difference, points", _gap(result["clean"]), _gap(result["robust"]), ""))
    table = markdown_table(("classifier", "clean", f"robust, {result['threat']}, `{result['plan']}`", "flags"), rows)
    told = f"{result['n']:,} images of {result['data']}; differences of pairs with 95 % intervals, p of McNemar's test."
    return f"{table}\n\n{told} {source(result)}"


def _gap(paired: dict[str, Any]) -> str:
    low, high = paired["interval"]
    return f"{100 * paired['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}], p = {paired['p']:.2g}"


def _weights(path: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
