"""The blocks of docs/transfer.md, docs/queries.md and docs/service.md."""

from __future__ import annotations

from typing import Any

from robustgen.benchmarks.tables import load_result, markdown_table, source
from robustgen.statistics import proportion
from robustgen.tables import interval_cell

__all__ = ["monitor", "queries_beside", "query_curves", "serve_load", "transfer_matrix"]


def transfer_matrix() -> str:
    """A line a surrogate, a column a target."""
    result = load_result("transfer_matrix")
    cells = {(cell["surrogate"], cell["target"]): cell["success"] for cell in result["cells"]}
    rows = []
    for surrogate in dict.fromkeys(cell["surrogate"] for cell in result["cells"]):
        held = [cells.get((surrogate, target)) for target in result["names"]]
        rows.append((surrogate, *("" if one is None else interval_cell(one) for one in held)))
    right = {cell["target"]: cell["attacked"] for cell in result["cells"]}
    rows.append(("images classified right", *(str(right[target]) for target in result["names"])))
    flagged = [f"{target}: {', '.join(flags)}" for target, flags in result["flags"].items() if flags]
    told = f"Flags: {'; '.join(flagged) or 'none'}. {result['what']}; {result['protocol']}."
    return f"{markdown_table(('attacked, %', *result['names']), rows)}\n\n{told} {source(result)}"


def query_curves() -> str:
    """Success within budgets, of each attack."""
    result = load_result("query_curves")
    rows = []
    for run in result["rows"]:
        for name, attack in run["queries"]["attacks"].items():
            within = [_share_within(attack["curve"], budget) for budget in (100, 300, 1000)]
            share = proportion(round(attack["success"] * attack["attacked"]), attack["attacked"])
            success = interval_cell({"value": share.value, "low": share.low, "high": share.high})
            median = "" if attack["median"] is None else f"{attack['median']:,}"
            rows.append((run["threat"], name, *(f"{100 * value:.0f}" for value in within), success, median))
    header = ("threat", "attack", "broken within 100, %", "300", "1,000", "success, %", "median queries of these")
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def _share_within(curve: list[dict[str, Any]], budget: int) -> float:
    """The height of a step curve at so many queries."""
    return max((point["value"] for point in curve if point["queries"] <= budget), default=0.0)


def queries_beside() -> str:
    """Our attacks and ART's by the same rule."""
    result = load_result("queries")
    rows = []
    for row in result["rows"]:
        free = ":" not in row["threat"]
        key = "median_distance" if free else "success"
        sides = [_beside(row[side][key], free) for side in ("ours", "theirs")]
        queries = ["" if row[side]["median_queries"] is None else f"{row[side]['median_queries']:,}"
                   for side in ("ours", "theirs")]  # fmt: skip
        wins = f"{row['only_ours']} / {row['only_theirs']}"
        rows.append((row["attack"], row["threat"], *sides, *queries, wins, f"{row['p']:.2g}"))
    header = ("attack", "threat", "success in % or median distance, ours", "ART", "median queries, ours", "ART",
              "ours alone or nearer / ART", "p")  # fmt: skip
    first = result["rows"][0]
    told = (
        f"{first['images']} images of {result['classifier']}, {first['budget']:,} queries for each; {result['peer']}."
    )
    return f"{markdown_table(header, rows)}\n\n{told} {source(result)}"


def _beside(value: float | None, free: bool) -> str:
    return "none" if value is None else f"{value:.3f}" if free else f"{100 * value:.1f} %"


def monitor() -> str:
    """What monitors see of attacks, and of honest traffic."""
    result = load_result("monitor")
    rows = []
    for row in result["rows"]:
        every = row["new_account_every"]
        alarm = row["median_queries_until_alarm"]
        accounts = "one" if every is None else f"a new one every {every} queries"
        shares = [interval_cell(row[key]) for key in ("success_unwatched", "detected", "success_before_alarm")]
        rows.append(
            (row["attack"], row["monitor"], accounts, *shares[:2], "" if alarm is None else str(alarm), shares[2])
        )
    header = ("attack", "monitor", "accounts", "success, %", "detected, %", "median queries until the alarm",
              "success before an alarm, %")  # fmt: skip
    honest = "; ".join(
        f"{one['monitor']['kind']} {interval_cell(one['held_out']['rate'])} % of {one['held_out']['queries']:,}"
        for one in result["honest"]
    )
    told = (
        f"{result['rows'][0]['images']} images of {result['classifier']}, {result['threat']}, {result['budget']} "
        f"queries for each. False alarms among honest queries that set no threshold: {honest}."
    )
    return f"{markdown_table(header, rows)}\n\n{told} {source(result)}"


def serve_load() -> str:
    """The server under load."""
    result = load_result("serve_load")
    megabytes = [size / 2**20 for size in result["rss"]]
    errors = ", ".join(f"{count} {name}" for name, count in result["errors"].items()) or "none"
    rows = [
        ("clients at once", f"{result['clients']}"), ("seconds", f"{result['seconds']:g}"),
        ("requests", f"{result['requests']:,}"), ("errors", errors),
        ("requests a second", f"{result['requests_a_second']:.0f}"),
        ("wait, median", f"{1000 * result['median_wait']:.0f} ms"),
        ("wait, 99 %", f"{1000 * result['wait_99']:.0f} ms"),
        *((f"memory after {share:.0%} of the time", f"{megabytes[int(share * (len(megabytes) - 1))]:.1f} MiB")
          for share in (0.25, 0.5, 0.75, 1.0)),
    ]  # fmt: skip
    return f"{markdown_table(('what', 'measured'), rows)}\n\n{result['classifier']}. {source(result)}"
