"""Certificates under attack: certified, attacked and clean accuracy of the same images, for the bundled classifiers.

Each certified image is attacked within its own radius by PGD on the smoothed classifier and judged by PREDICT with
other noise; see docs/certification.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from robustgen.benchmarks.harness import store
from robustgen.certify.inside_run import InsideRequest, attack_certification, attack_lines
from robustgen.certify.request import CertificationRequest, certify_request
from robustgen.environment import tune_process
from robustgen.progress import Silent

CASES = (("fmnist-gaussian-0.25", 0.25), ("fmnist-gaussian-0.50", 0.5), ("fmnist-at", 0.12))
N, SAMPLES = 100, 2_000


def measure(classifier: str, sigma: float) -> dict[str, Any]:
    """One classifier: certify, then attack what is certified."""
    radii = ",".join(f"{factor * sigma:g}" for factor in (0, 1, 2))
    request = CertificationRequest(classifier=classifier, sigma=sigma, radii=radii, samples=SAMPLES, n=N)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        certify_request(request, out=run, batch_size=1000, device="auto", progress=Silent())
        found = attack_certification(InsideRequest(run=run), batch_size=1000, device="auto", progress=Silent())
    print("\n".join(attack_lines(found)), flush=True)
    kept = ("norm", "n", "attacked", "broken", "share", "attacked_share", "rows", "alpha")
    return {"classifier": classifier, "sigma": sigma, **{key: found[key] for key in kept}}


def main() -> None:
    """Measure, print, store."""
    tune_process()
    rows = [measure(*case) for case in CASES]
    print(store("certify_inside", {"what": f"{N} images, at most {SAMPLES:,} draws an image", "rows": rows}))


if __name__ == "__main__":
    main()
