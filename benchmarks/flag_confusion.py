"""Which health flags each decoy and each honest classifier raises, and what PGD alone would have said."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import robustgen
from robustgen.benchmarks.harness import store
from robustgen.cards import Card, bundled_cards
from robustgen.environment import tune_process

PLANS = ("rapid", "standard")
N = 32


def measure(name: str, kind: str) -> dict[str, Any]:
    """One classifier under PGD and under each plan."""
    row: dict[str, Any] = {"classifier": name, "kind": kind, "n": N}
    with tempfile.TemporaryDirectory() as folder:
        pgd = robustgen.evaluate(name, n=N, attacks="pgd:steps=40", out=Path(folder) / "pgd")
        row["clean"], row["pgd"] = pgd.clean_accuracy.value, pgd.robust_accuracy.value
        for plan in PLANS:
            record = robustgen.evaluate(name, n=N, plan=plan, out=Path(folder) / plan)
            row[plan] = {"robust": record.robust_accuracy.value, "flags": list(record.flags), "health": record.health}
    return row


def main() -> None:
    """Measure, print, store."""
    tune_process()
    rows = [measure(name, Card.load(path).kind) for name, path in sorted(bundled_cards().items())]
    for row in rows:
        plans = ", ".join(f"{plan} {row[plan]['robust']:.2f} {row[plan]['flags']}" for plan in PLANS)
        print(f"{row['classifier']:<22} clean {row['clean']:.2f}, PGD {row['pgd']:.2f}, {plans}")
    print(store("flag_confusion", {"rows": rows}))


if __name__ == "__main__":
    main()
