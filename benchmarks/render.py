"""Render README.md and docs/ from stored results and from the code: `python -m robustgen.benchmarks.render`.

Each block between `<!-- results: NAME -->` and `<!-- end -->` is replaced by one made from results/*.json, or from the
tables in the code. A test checks that the documents say what these say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robustgen.health import FLAGS
from robustgen.statistics import proportion

__all__ = ["BLOCKS", "main", "render"]

RESULTS = Path(__file__).resolve().parent / "results"
ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "flags.md")


def _load(name: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return table


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _percent(value: float, n: int) -> str:
    estimate = proportion(round(value * n), n)
    return f"{100 * value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _source(result: dict[str, Any]) -> str:
    machine = result["environment"]
    return f"`{result['command']}`, {result['date']}, {machine['processor']}, {machine['threads']} threads"


def accuracy() -> str:
    """The bundled classifiers under AutoAttack and under the default plan."""
    result = _load("reference_accuracy")
    header = (
        "classifier",
        "images",
        "clean",
        "AutoAttack standard",
        "robustgen eval",
        "same verdict",
    )
    rows = [
        (
            row["classifier"],
            str(row["n"]),
            _percent(row["clean"], row["n"]),
            _percent(row["autoattack"], row["n"]),
            _percent(row["ours"], row["n"]),
            f"{100 * row['agreement']:.1f} %",
        )
        for row in result["rows"]
    ]
    return f"{_table(header, rows)}\n\n{_source(result)}"


def engine_speed() -> str:
    """The engine against the plain loop."""
    result = _load("engine_speed")
    rows = []
    for name, side in result.items():
        if isinstance(side, dict) and "ratio" in side:
            ours, theirs = sorted(side["ours"]), sorted(side["theirs"])
            rates = [f"{result['images'] / seconds[len(seconds) // 2]:.0f}" for seconds in (ours, theirs)]
            ratio = side["ratio"]
            rows.append((name, *rates, f"{ratio['median']:.1f} [{ratio['min']:.1f}, {ratio['max']:.1f}]"))
    header = ("what", "images/s, engine", "images/s, loop", "ratio [min, max]")
    what = f"{result['what']}; form chosen: {result['form']}."
    return f"{_table(header, rows)}\n\n{what} {_source(result)}"


def flags() -> str:
    """The manual of the health flags."""
    parts = []
    for name, flag in FLAGS.items():
        then = "`rapid` then goes on to its thorough attacks." if flag.escalates else "No further attack follows."
        parts.append(
            f"## {name}\n\n**Raised if** {flag.raised_if}.\n\n**Why it matters:** {flag.why}.\n\n"
            f"**What to do:** {flag.what_to_do}. {then}"
        )
    return "\n\n".join(parts)


BLOCKS: dict[str, Callable[[], str]] = {"accuracy": accuracy, "engine_speed": engine_speed, "flags": flags}


def render(text: str) -> str:
    """A document with every results block made anew."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- results: {match[1]} -->\n\n{BLOCKS[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- results: (\w+) -->.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the documents."""
    for path in DOCUMENTS:
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
