"""The block of docs/scale.md that plans a large run on paper: assumptions, and what follows from them."""

from __future__ import annotations

import math

from robustgen.benchmarks.tables import load_result, markdown_table

__all__ = ["paper_plan"]

# What is assumed; nothing of it was measured by us. Rates are those of public trainings of ResNet-50 in bfloat16.
IMAGES, RANKS, ROBUST, EDGE = 50_000, 64, 0.6, 224
FORWARD, GRADIENT = 5_000, 1_600  # images a second on one device of a data centre
ROWS, COPIES = 250, 12  # rows of a batch, images that the state of an attack holds for each
PACKING = 10e6  # bytes a second, one process
LINE = 500  # bytes of a line of the journal

# What `standard` asks of an example that stays robust: APGD-CE, nine targets of APGD-T and of FAB-T, Square.
_FORWARDS = 103 + 920 + 1829 + 5004
_BACKWARDS = 101 + 909 + 900


def paper_plan() -> str:
    """Examples, queries, minutes and bytes of a large run, from the assumptions and from stored results."""
    queries = [
        (plan["forwards"] + plan["backwards"]) / row["n"]
        for row in load_result("speed-autoattack")["rows"]
        for plan in (row["plans"]["rapid"],)
    ]
    packed: dict[str, list[float]] = {"linf": [], "l2": []}
    for row in load_result("evidence")["rows"]:
        packed[row["threat"].partition(":")[0]].append(row["packed_bytes"] / row["raw_bytes"])
    shares = ", ".join(f"{100 * max(values):.0f} % in {norm}" for norm, values in packed.items())
    each, image, broken = math.ceil(IMAGES / RANKS), 3 * EDGE * EDGE * 4, IMAGES * (1 - ROBUST)
    most = max(queries)
    rapid = each * most / GRADIENT
    standard = each * ROBUST * ((_FORWARDS - _BACKWARDS) / FORWARD + _BACKWARDS / GRADIENT)
    spread = 100 * math.sqrt(ROBUST * (1 - ROBUST) / each)
    rows = [
        ("images, processes", f"{IMAGES:,}, {RANKS}", "assumed"),
        ("robust share", f"{100 * ROBUST:.0f} %", "assumed"),
        ("examples a process", f"{each:,}", "images / processes"),
        ("images a second, forward; with the gradient", f"{FORWARD:,}; {GRADIENT:,}", "assumed, from public rates"),
        ("queries of `standard` for an example that stays", f"{_FORWARDS:,} forwards, {_BACKWARDS:,} backwards",
         "the attacks' rounds"),
        ("queries of `rapid`, mean of an example, both kinds", f"{min(queries):.0f} to {most:.0f}",
         "speed-autoattack.json"),
        ("`rapid`, minutes", f"{rapid / 60:.0f}", "examples x the most queries / rate with the gradient"),
        ("`standard`, minutes", f"{standard / 60:.0f}", "robust examples x queries / rates"),
        ("images in memory", f"{ROWS * COPIES * image / 1e9:.1f} GB",
         f"{ROWS} rows x {COPIES} copies x {image / 1e6:.1f} MB"),
        ("witnesses, raw", f"{broken * image / 1e9:.0f} GB", "broken images x bytes of one"),
        ("of it after packing", shares, "evidence.json"),
        ("packing in one process, minutes", f"{broken * image / PACKING / 60:.0f}", f"at {PACKING / 1e6:.0f} MB/s"),
        ("journal", f"{IMAGES * LINE / 1e6:.0f} MB", f"lines x {LINE} bytes, assumed"),
        ("deviation of the robust share among processes", f"{spread:.1f} points", "binomial"),
    ]  # fmt: skip
    return markdown_table(("quantity", "figure", "from"), rows)
