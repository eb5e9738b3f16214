"""Keep a table of `robustgen reproduce` for the documents: `python -m robustgen.benchmarks.reproduced OUT/TABLE.json`.

Figures go to results/reproduced-TABLE.json as they are, with date and machine (run it where the table was made), its
picture to docs/reproduced-TABLE.png.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from robustgen.benchmarks.harness import store

__all__ = ["RENDERED_BY", "keep", "stored_name"]

DOCS = Path(__file__).resolve().parent.parent / "docs"
RENDERED_BY = {
    "certification": "robustgen.reproduce.certification",
    "purification": "robustgen.reproduce.purification",
    **{
        f"wang2023-{name}": "robustgen.reproduce.report"
        for name in ("main", "amount", "sampling-steps", "augmentation", "epochs", "edm")
    },
}


def stored_name(table: str) -> str:
    """Of the result, without .json, and of the picture, without .png."""
    return f"reproduced-{table}"


def keep(path: Path) -> Path:
    """Store one table; the path of the result."""
    table = path.stem
    if table not in RENDERED_BY:
        raise SystemExit(f"{path} is no table of robustgen reproduce; expected OUT/NAME.json, NAME: {set(RENDERED_BY)}")
    held = json.loads(path.read_text(encoding="utf-8"))
    picture = path.with_suffix(".png")
    if picture.is_file():
        shutil.copyfile(picture, DOCS / f"{stored_name(table)}.png")
    return store(stored_name(table), {"command": f"robustgen reproduce {table} --data-dir DATA", "held": held})


def main() -> None:
    """Store the tables that are named."""
    for argument in sys.argv[1:]:
        print(keep(Path(argument)))


if __name__ == "__main__":
    main()
