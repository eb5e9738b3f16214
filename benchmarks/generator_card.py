"""Bring a trained generator into the zoo: weights as bfloat16, card with what was measured of it, and its log.

    python -m robustgen.benchmarks.generator_card trained/fmnist-edm --judgement judge.json --cas cas.json

The judgement is what `robustgen generator judge --json` printed, the CAS what `robustgen.benchmarks.generator_cas` did,
both of images by these weights: in bfloat16 the network computes with exactly what is stored.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from robustgen import durable
from robustgen.generator.card import GeneratorCard

ZOO = Path(__file__).resolve().parent.parent / "robustgen" / "zoo"


def figures(judgement: dict[str, Any], cas: dict[str, Any], sampler: str) -> list[dict[str, Any]]:
    """Rows for the card: each with its metric, value, n and protocol."""
    table = judgement["tables"][0]
    generated, *floors = table["rows"]
    n, names = judgement["n"], table["names"]
    by = f"{sampler}, against {n} training images of {judgement['data']}"
    near, audit = generated["neighbours"], judgement["memorisation"]
    rows = [
        {"metric": names["FD"], "value": generated["fd"]["value"], "error": generated["fd"]["error"], "protocol": by},
        *(
            {"metric": names["FD"], "value": row["fd"]["value"], "error": row["fd"]["error"], "protocol": row["name"]}
            for row in floors
        ),
        *(
            {"metric": key, "value": _value(near[key]), "protocol": f"{by}; in the features of {names['FD']}"}
            for key in ("precision", "recall", "density", "coverage")
        ),
        {
            "metric": "flagged as copies",
            "value": _value(audit["flagged"]),
            "protocol": f"Carlini 2023, alpha 0.5; of test images {_value(audit['flagged_held_out'])}",
        },
    ]
    trained = f"{sampler}; a small network trained on {cas['n_train']} of its images and on no real one, real test set"
    return [
        {"metric": "classification accuracy score", "value": _value(cas["accuracy"]), "n": 10_000, "protocol": trained},
        *({**row, "n": n} for row in rows),
    ]


def _value(figure: Any) -> float:
    return float(figure["value"]) if isinstance(figure, dict) else float(figure)


def main() -> None:
    """Read, convert, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--judgement", type=Path)
    parser.add_argument("--cas", type=Path)
    parser.add_argument("--sampler", default="heun:steps=10")
    given = parser.parse_args()
    (path,) = [p for p in given.folder.glob("*.json") if p.name != "recipe.json"]
    card = GeneratorCard.load(path)
    content = save({key: value.to(torch.bfloat16) for key, value in load_file(given.folder / card.weights).items()})
    durable.replace(ZOO / "generators" / card.weights, content)
    held = list(card.figures)
    if given.judgement and given.cas:
        held += figures(json.loads(given.judgement.read_text()), json.loads(given.cas.read_text()), given.sampler)
    replace(card, sha256=sha256(content).hexdigest(), figures=tuple(held)).save(ZOO / "generators" / path.name)
    log = (given.folder / "metrics.jsonl").read_bytes()
    durable.replace(ZOO / "log" / f"{card.name}.jsonl", log)
    print(ZOO / "generators" / path.name)


if __name__ == "__main__":
    main()
