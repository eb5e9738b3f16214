"""Certified accuracy against the side of a patch: PatchCleanser's masks, and votes over bands and over blocks.

Three classifiers are trained first, each by `robustgen train RECIPE --data-dir DATA`: fmnist-cutout, fmnist-ablation,
fmnist-ablation-block. Then `python -m robustgen.benchmarks.certify_patches trained`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from robustgen.benchmarks.harness import store
from robustgen.certify.patches import PatchRequest
from robustgen.certify.patches_run import certify_against_patches
from robustgen.environment import tune_process
from robustgen.progress import Silent

MASKED = (1, 2, 3, 4, 6)  # sides of the patch, in pixels
VOTED = (1, 2, 4, 6, 8)
TRAINED: dict[str, dict[str, Any]] = {
    "fmnist-cutout": {"patches": MASKED, "n": 200},
    "fmnist-ablation": {"patches": VOTED, "method": "band", "n": 1000},
    "fmnist-ablation-block": {"patches": VOTED, "method": "block", "size": 10, "n": 1000},
}


def measure(request: PatchRequest, shown: str) -> dict[str, Any]:
    """One defence; `shown` names its classifier, which may be a file."""
    with tempfile.TemporaryDirectory() as folder:
        found = certify_against_patches(request, out=Path(folder) / "run", device="auto", progress=Silent())
    rows = [{key: row[key] for key in ("patch", "clean", "certified")} for row in found["rows"]]
    print(shown, request.method, found["clean"], rows, flush=True)
    return {"classifier": shown, "method": request.method, "n": request.n, "undefended": found["clean"], "rows": rows}


def main() -> None:
    """Measure, print, store."""
    tune_process()
    cards = {name: Path(sys.argv[-1]) / name / f"{name}.json" for name in TRAINED}
    if len(sys.argv) != 2 or not all(card.is_file() for card in cards.values()):
        raise SystemExit(f"Name the folder that `robustgen train` wrote {', '.join(TRAINED)} to, such as trained.")
    plain = PatchRequest(classifier="fmnist-standard", patches=MASKED, n=200)
    asked = {name: PatchRequest(classifier=str(card), **TRAINED[name]) for name, card in cards.items()}
    rows = [measure(request, name) for name, request in ({"fmnist-standard": plain} | asked).items()]
    print(store("certify_patches", {"rows": rows}))


if __name__ == "__main__":
    main()
