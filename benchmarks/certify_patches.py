"""Certified accuracy against the side of a patch: PatchCleanser's masks, and votes over bands.

The classifier for bands is trained first: `robustgen train fmnist-ablation`, then
`python -m robustgen.benchmarks.certify_patches trained/fmnist-ablation/fmnist-ablation.json`.
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
    if len(sys.argv) != 2:
        raise SystemExit("Name the card that `robustgen train fmnist-ablation` wrote.")
    card = sys.argv[1]
    rows = [
        measure(PatchRequest(classifier="fmnist-standard", patches=(1, 2, 3, 4), n=200), "fmnist-standard"),
        measure(PatchRequest(classifier=card, patches=(1, 2, 4, 6, 8), method="band", n=1000), Path(card).stem),
    ]
    print(store("certify_patches", {"rows": rows}))


if __name__ == "__main__":
    main()
