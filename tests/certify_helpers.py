"""What tests of finished certifications share: folders to look at, and ways to spoil them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustgen.certify.record import load_certification, summarise
from robustgen.certify.request import CertificationRequest, certify_request
from robustgen.progress import Silent
from tests.helpers import write_linear_task

SIGMA = 0.08
RADII = (0.0, 0.04, 0.08, 0.12)


def make(folder: Path, name: str, **asked: Any) -> Path:
    """A certification of the linear classifier."""
    request = CertificationRequest(
        classifier=f"python:{folder}/net.py:make", data=f"npz:{folder}/data.npz", sigma=SIGMA, n=14, samples=1500,
        radii="0,0.04,0.08,0.12", precision="float32", **asked,
    )  # fmt: skip
    certify_request(request, out=folder / name, batch_size=500, device="cpu", progress=Silent())
    return folder / name


def certify_all(folder: Path) -> Path:
    """A classifier, data, and three finished certifications: anytime, fixed, and with uniform noise; the folder."""
    write_linear_task(folder, 20)
    found = load_certification(make(folder, "anytime")).certificates
    assert {one.predict == -1 for one in found} == {True, False}, "some are certified, some abstain"
    make(folder, "fixed", method="fixed")
    make(folder, "uniform", noise="uniform", method="fixed")
    return folder


def lines(run: Path) -> list[dict[str, Any]]:
    """The rows of the journal."""
    return [json.loads(line) for line in (run / "certificates.jsonl").read_text().splitlines()]


def write_lines(run: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows in place of those of the journal."""
    (run / "certificates.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def edit(run: Path, change: Callable[[dict[str, Any]], None], file: str = "record.json") -> None:
    """Edit a JSON file."""
    table = json.loads((run / file).read_text())
    change(table)
    (run / file).write_text(json.dumps(table))


def edit_row(run: Path, pick: Callable[[dict[str, Any]], bool], change: Callable[[dict[str, Any]], None]) -> int:
    """Edit the first row of that kind; its id."""
    rows = lines(run)
    row = next(row for row in rows if pick(row))
    change(row)
    write_lines(run, rows)
    return int(row["id"])


def settle(run: Path) -> None:
    """Make the totals those of the journal, as a careful forger would."""
    held = load_certification(run)
    edit(run, lambda table: table.update(summarise(held.spec, held.certificates, held.shape)))


def certified(row: dict[str, Any]) -> bool:
    """With a radius above 0."""
    return row["radius"] > 0


def abstained(row: dict[str, Any]) -> bool:
    """Without a class."""
    return row["predict"] == -1
