"""Render README.md and docs/ from stored results and from the code: `python -m robustgen.benchmarks.render`.

Each block between `<!-- results: NAME -->` and `<!-- end -->` is replaced by one made from results/*.json, or from the
tables in the code. A test checks that the documents say what these say.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustgen.benchmarks.render_black_box import monitor, query_curves, serve_load, transfer_matrix
from robustgen.benchmarks.render_certify import certify_inside, certify_patches, certify_replay, certify_speed
from robustgen.benchmarks.render_generator import (
    edm_cifar10,
    generator_cas,
    generator_sampling,
    generator_sampling_speed,
    generator_training,
    orders,
    time_to_quality,
)
from robustgen.benchmarks.render_leaderboard import board_page, leaderboard_claims, leaderboard_entries
from robustgen.benchmarks.render_patches import patch_certified, patch_ladder, patch_sizes, patches_speed
from robustgen.benchmarks.render_purify import purify_gradients, purify_memory, purify_speed
from robustgen.benchmarks.render_reproduced import reproduced_blocks
from robustgen.benchmarks.render_why import why_dimension, why_gradients, why_networks, why_surface, why_transfer
from robustgen.benchmarks.tables import load_result, markdown_table, source
from robustgen.cards import bundled_cards
from robustgen.flags import FLAGS
from robustgen.spec import expand_ids
from robustgen.statistics import proportion

__all__ = ["BLOCKS", "main", "render"]

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    ROOT / "README.md", ROOT / "docs" / "certification.md", ROOT / "docs" / "flags.md", ROOT / "docs" / "generator.md",
    ROOT / "docs" / "leaderboard.md", ROOT / "docs" / "plans.md", ROOT / "docs" / "purification.md",
    ROOT / "docs" / "patches.md", ROOT / "docs" / "plans.md", ROOT / "docs" / "purification.md",
    ROOT / "docs" / "records.md", ROOT / "docs" / "scale.md", ROOT / "docs" / "training.md", ROOT / "docs" / "why.md",
    ROOT / "docs" / "service.md",
    ROOT / "docs" / "transfer.md",
    ROOT / "docs" / "queries.md",
)  # fmt: skip


def _percent(value: float, n: int) -> str:
    estimate = proportion(round(value * n), n)
    return f"{100 * value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def accuracy() -> str:
    """The bundled classifiers under AutoAttack and under the default plan."""
    result, bundled = load_result("speed-autoattack"), bundled_cards()
    rows = []
    for row in result["rows"]:
        if row["classifier"] in bundled and row["precision"] == "auto":
            n, ours = row["compared"], row["plans"]["rapid"]
            figures = (_percent(value, n) for value in (row["clean"], row["autoattack"]["robust"]))
            mine = (_percent(ours["robust_where_compared"], n), f"{100 * ours['agreement']:.1f} %")
            rows.append((row["classifier"], row["threat"], str(n), *figures, *mine))
    header = ("classifier", "threat", "images", "clean", "AutoAttack standard", "robustgen eval", "same verdict")
    return f"{markdown_table(header, rows)}\n\n{source(result)}"


def engine_speed() -> str:
    """The engine against the plain loop."""
    result = load_result("speed-engine")
    rows = []
    for name, side in result.items():
        if isinstance(side, dict) and "ratio" in side:
            ours, theirs = sorted(side["ours"]), sorted(side["theirs"])
            rates = [f"{result['images'] / seconds[len(seconds) // 2]:.0f}" for seconds in (ours, theirs)]
            ratio = side["ratio"]
            rows.append((name, *rates, f"{ratio['median']:.1f} [{ratio['min']:.1f}, {ratio['max']:.1f}]"))
    header = ("what", "images/s, engine", "images/s, loop", "ratio [min, max]")
    what = f"{result['what']}; form chosen: {result['form']}."
    return f"{markdown_table(header, rows)}\n\n{what} {source(result)}"


def _row_name(row: dict[str, Any]) -> str:
    form = "" if row["precision"] == "auto" else f", {row['precision']}"
    return f"{row['classifier']}, {row['threat']}{form}"


def conformance() -> str:
    """`standard` against AutoAttack: verdicts and seconds."""
    result = load_result("speed-autoattack")
    rows = []
    for row in result["rows"]:
        ours, n = row["plans"]["standard"], row["compared"]
        theirs, seconds = row["autoattack"], sum(row["autoattack"]["seconds"])
        shares = (theirs["robust"], ours["robust_where_compared"], ours["agreement"])
        times = (f"{seconds:.0f}", f"{ours['seconds'][0]:.0f}", f"{ours['ratio']:.1f} ×")
        rows.append((_row_name(row), str(n), *(f"{100 * share:.2f} %" for share in shares), *times))
    header = ("classifier, threat", "images", "AutoAttack", "standard", "same verdict", "seconds", "ours", "ratio")
    return f"{markdown_table(header, rows)}\n\n{source(result)}"


def plans() -> str:
    """`rapid` and `strong` against AutoAttack and against `standard`."""
    result = load_result("speed-autoattack")
    rows = []
    for row in result["rows"]:
        rapid, strong, standard = (row["plans"][name] for name in ("rapid", "strong", "standard"))
        found = {name: len(expand_ids(row["plans"][name]["robust_ids"])) for name in row["plans"]}
        faster = f"{sum(standard['seconds']) / sum(strong['seconds']):.1f} ×"
        rows.append(
            (
                _row_name(row), str(row["n"]), *(f"{100 * p['robust']:.2f} %" for p in (standard, rapid, strong)),
                f"{rapid['ratio']:.0f} ×", f"{strong['ratio']:.0f} ×",
                faster, f"{found['standard'] - found['strong']:+d}",
            )
        )  # fmt: skip
    header = (
        "classifier, threat", "images", "standard", "rapid", "strong", "AutoAttack / rapid, s",
        "AutoAttack / strong, s", "standard / strong, s", "more broken by strong than by standard",
    )  # fmt: skip
    return f"{markdown_table(header, rows)}\n\n{source(result)}"


def missed() -> str:
    """The examples on which `rapid` and AutoAttack disagree."""
    result = load_result("speed-autoattack")
    rows = []
    for row in result["rows"]:
        ours = row["plans"]["rapid"]
        sides = (", ".join(map(str, ours[f"only_{side}_broke"])) or "none" for side in ("autoattack", "ours"))
        rows.append((_row_name(row), str(row["compared"]), *sides))
    return markdown_table(("classifier, threat", "images", "broken by AutoAttack alone", "broken by rapid alone"), rows)


def only_strong() -> str:
    """The examples that only `strong` breaks."""
    result = load_result("speed-autoattack")
    rows = []
    for row in result["rows"]:
        left = {name: set(expand_ids(p["robust_ids"])) for name, p in row["plans"].items()}
        alone = sorted((left["rapid"] & left["standard"]) - left["strong"])
        missed = sorted(left["strong"] - left["standard"])
        rows.append((_row_name(row), ", ".join(map(str, alone)) or "none", ", ".join(map(str, missed)) or "none"))
    return markdown_table(
        ("classifier, threat", "broken by strong alone", "broken by standard and not by strong"), rows
    )


def pgd() -> str:
    """PGD against foolbox and ART."""
    result = load_result("speed-pgd")
    rows = [
        (
            row["classifier"], row["peer"], row["form"], f"{row['broken']['ours']} / {row['broken']['theirs']}",
            f"{row['ratio']['median']:.1f} × [{row['ratio']['min']:.1f}, {row['ratio']['max']:.1f}]",
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = ("classifier", "peer", "our form", "broken, ours / theirs", "seconds, theirs / ours")
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def flag_confusion() -> str:
    """Which flags each decoy and each honest classifier raised."""
    result = load_result("flag_confusion")
    rows = [
        (
            row["classifier"], row["kind"], f"{100 * row['pgd']:.0f} %", f"{100 * row['rapid']['robust']:.0f} %",
            ", ".join(row["rapid"]["flags"]) or "none", ", ".join(row["standard"]["flags"]) or "none",
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = ("classifier", "kind", "robust under PGD", "under rapid", "flags of rapid", "flags of standard")
    return f"{markdown_table(header, rows)}\n\n{source(result)}"


def memory() -> str:
    """Peak memory at 1,000 and 10,000 examples."""
    result = load_result("memory")
    rows = [(str(row["n"]), f"{row['peak_mib']:.0f} MiB", f"{row['seconds']:.0f}") for row in result["rows"]]
    return (
        f"{markdown_table(('examples', 'peak resident memory', 'seconds'), rows)}\n\n{result['what']} {source(result)}"
    )


def evidence() -> str:
    """Bytes of the witnesses, seconds of verify."""
    result = load_result("evidence")
    rows = [
        (
            row["classifier"], row["threat"], row["plan"], str(row["witnesses"]),
            f"{row['packed_bytes'] / 1000:.0f} kB", f"{100 * row['packed_bytes'] / row['raw_bytes']:.0f} %",
            f"{row['run_seconds']:.1f}", f"{row['verify_seconds']:.2f}",
            f"{100 * row['verify_seconds'] / row['run_seconds']:.1f} %",
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = (
        "classifier", "threat", "plan", "witnesses", "packed", "of float32", "run, s", "verify, s", "of the run",
    )  # fmt: skip
    return f"{markdown_table(header, rows)}\n\n{result['what']} {source(result)}"


def determinism() -> str:
    """Verdicts and images that differ between batch sizes and numbers of threads."""
    result = load_result("determinism")
    rows = [
        (
            row["classifier"], row["precision"], str(row["n"]), f"batch {way['batch']}, {way['threads']} threads",
            str(way["verdicts"]), str(way["images"]),
        )
        for row in result["rows"]
        for way in row["ways"]
    ]  # fmt: skip
    header = ("classifier", "precision", "examples", "way", "verdicts that differ", "images that differ")
    return f"{markdown_table(header, rows)}\n\nPlan `rapid`, {result['what']} {source(result)}"


def ranks() -> str:
    """One process with two threads against two ranks with one."""
    result = load_result("ranks")
    rows = []
    for row in result["rows"]:
        for way, seconds in row["seconds"].items():
            middle, wall = statistics.median(seconds), statistics.median(row["wall"][way])
            spread = f"{middle:.1f} [{min(seconds):.1f}, {max(seconds):.1f}]"
            rows.append((row["classifier"], row["plan"], str(row["n"]), way, spread, f"{wall:.1f}"))
    differ = sum(row["verdicts_that_differ"] for row in result["rows"])
    header = ("classifier", "plan", "examples", "way", "seconds, median [min, max]", "with the start")
    return f"{markdown_table(header, rows)}\n\nVerdicts that differ: {differ}. {result['what']} {source(result)}"


def speed_limit() -> str:
    """How fast a query can be at most, beside what it is."""
    result = load_result("speed-limit")
    rows = [
        (
            row["classifier"], f"{row['million_macs']:.1f}", f"{1e6 * row['forward']['plain']:.0f}",
            f"{1e6 * row['forward']['ours']:.0f}", f"{1e6 * row['bound_forward']:.0f}", f"{row['got_forward']:.1f} ×",
            f"{row['most']:.1f} ×", f"{row['got_gradient']:.1f} ×",
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = (
        "classifier", "million multiplications", "forward, plain float32, µs", "ours, µs", "bound, µs", "gained",
        "at most", "gained with the gradient",
    )  # fmt: skip
    peak = f"A bfloat16 matrix product reaches {result['peak_gmacs']:.0f} thousand million multiplications a second."
    return f"{markdown_table(header, rows)}\n\n{peak} {source(result)}"


def self_agreement() -> str:
    """AutoAttack against itself."""
    result = load_result("self_agreement")
    rows = [
        (
            f"{row['classifier']}, {row['threat']}", str(row["n"]),
            *(f"{100 * share:.2f} %" for share in row["robust"]),
            f"{100 * row['agreement']:.2f} %", ", ".join(map(str, row["differ"])) or "none",
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = ("classifier, threat", "images", "seed 0", "seed 1", "same verdict", "differ on")
    return f"{markdown_table(header, rows)}\n\n{source(result)}"


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


_ALL = (
    accuracy, board_page, certify_inside, certify_patches, certify_replay, certify_speed, conformance,
    determinism, edm_cifar10, engine_speed, evidence, flag_confusion, flags, generator_cas, generator_sampling,
    generator_sampling_speed, generator_training, leaderboard_claims, leaderboard_entries, memory, missed,
    monitor, only_strong, orders, patch_certified, patch_ladder, patch_sizes, patches_speed, pgd, plans,
    purify_gradients, purify_memory, purify_speed, query_curves, ranks, self_agreement, serve_load, speed_limit,
    time_to_quality, transfer_matrix, why_dimension, why_gradients, why_networks, why_surface, why_transfer,
)  # fmt: skip
BLOCKS: dict[str, Callable[[], str]] = {block.__name__: block for block in _ALL} | reproduced_blocks()


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
