"""A network of a stranger's own, small enough that a run of it takes no time: random weights, and a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from robustgen.nets import build_network

BROKEN, ROBUST = (190, 216, 175), (131, 80)  # of what it classifies right: what falls within the eps, and what stands
IDS = ",".join(map(str, sorted(BROKEN + ROBUST)))
THREAT = "linf:0.16"


def write_network(folder: Path, **told: Any) -> Path:
    """mine.json and mine.safetensors; the path of the card, which says what is `told`."""
    options = {"widths": [4], "depths": [1], "channels": 1, "classes": 10}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(build_network("small-resnet", **options).state_dict(), folder / "mine.safetensors")
    card = {
        "name": "mine", "title": "mine", "architecture": "small-resnet", "options": options, "channels": 1,
        "classes": 10, "size": [28, 28], "kind": "user", "weights": "mine.safetensors",
    }  # fmt: skip
    (folder / "mine.json").write_text(json.dumps(card | told), encoding="utf-8")
    return folder / "mine.json"
