"""The JSON Schemas that describe a run folder: each file obeys its own, and they name every field."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

import robustgen
from robustgen.example import ExampleRecord
from robustgen.record import RunRecord
from robustgen.spec import RunSpec
from tests.helpers import make_linear

SCHEMAS = Path(robustgen.__file__).parent / "schemas"


def schema(name: str) -> dict[str, Any]:
    """One of the schemas, itself checked."""
    table: dict[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(table)
    return table


class Noisy(nn.Module):
    """A linear classifier with noise on its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_linear((1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) -> (B, 4)."""
        logits: Tensor = self.inner(x)
        return logits + 0.05 * torch.randn_like(logits)


@pytest.mark.parametrize("network", [make_linear((1, 8, 8)), Noisy().eval()], ids=["deterministic", "randomised"])
def test_files_obey(network: nn.Module, tmp_path: Path) -> None:
    """Spec, lines, record and clock of a run, with and without a randomised classifier."""
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = make_linear((1, 8, 8))(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    record = robustgen.evaluate(network, (x, y), "linf:0.01", attacks="pgd:steps=3", out=tmp_path / "run")
    run = Path(record.run)
    for name in ("spec", "record", "seconds"):
        jsonschema.validate(json.loads((run / f"{name}.json").read_text()), schema(name))
    lines = (run / "examples.jsonl").read_text().splitlines()
    assert 20 == len(lines)
    for line in lines:
        jsonschema.validate(json.loads(line), schema("example"))
    assert (record.stochastic is None) == (not isinstance(network, Noisy))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(lines[0]), "robust": None}, schema("example"))


@pytest.mark.parametrize(
    ("name", "kind", "apart"),
    [("spec", RunSpec, set()), ("example", ExampleRecord, set()), ("record", RunRecord, {"seconds", "run"})],
)
def test_every_field_is_described(name: str, kind: type, apart: set[str]) -> None:
    """A field that is added to a record and not to its schema fails here."""
    properties = set(schema(name)["properties"])
    named = {f.name for f in fields(kind)} - apart
    shown = {"classifier", "data", "threat", "plan", "protocol", "seed", "precision"} if name == "record" else set()
    assert named | shown == properties
    assert all("description" in value for value in schema(name)["properties"].values())
