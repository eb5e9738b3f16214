"""Blocks about what comes along: how long the bundled classifiers and generators were trained, by their own logs."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from robustgen.benchmarks.tables import markdown_table
from robustgen.cards import bundled_cards
from robustgen.generator.card import GeneratorCard, bundled_generators

__all__ = ["bundled_generators_table", "bundled_trainings"]

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


def _weights(path: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
