"""Who misleads whom among three bundled classifiers of Fashion-MNIST: the matrix of `robustgen transfer matrix`.

Every cell is a run folder below --work; the same command goes on with what is left. The heat map goes to
docs/transfer.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from robustgen.benchmarks.harness import DOCS, store
from robustgen.environment import tune_process
from robustgen.plot_transfer import plot_transfer
from robustgen.progress import Lines
from robustgen.report import transfer_lines
from robustgen.request import Request
from robustgen.transfer import transfer_matrix

CLASSIFIERS = "fmnist-standard,fmnist-at,fmnist-at-l2"
THREAT, ATTACKS, N = "linf:0.1", "mi-fgsm,di-fgsm", 200


def main() -> None:
    """Measure, print, draw, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs") / "transfer_matrix")
    options = parser.parse_args()
    tune_process()
    request = Request(threat=THREAT, attacks=ATTACKS, data="fmnist-test-1k", n=N)
    found = transfer_matrix(CLASSIFIERS, request, out=options.work, progress=Lines())
    print("\n".join(transfer_lines(found)))
    plot_transfer(found, DOCS)
    print(store("transfer_matrix", {"what": f"{N} embedded images, {THREAT}", **found.to_json()}))


if __name__ == "__main__":
    main()
