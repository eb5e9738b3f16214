"""The blocks of docs/distances.md: our minimum-norm attacks beside those of other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robustgen.benchmarks.tables import load_result, markdown_table, ratio_cell, source

__all__ = ["distances", "distances_attackbench", "distances_attacks", "distances_settings", "speed_distances"]


def distances() -> str:
    """The best of our attacks on each image against the best of all others."""
    result, rows = load_result("distances"), []
    for row in result["rows"]:
        ours, theirs = row["together"]["robustgen"], row["together"]["others"]
        cells = (_percent(side[key]) for key in ("near", "optimality") for side in (ours, theirs))
        medians = (_number(side["median"]) for side in (ours, theirs))
        rows.append((row["classifier"], row["norm"], str(row["images"]), str(row["budget"]), *medians, *cells))
    header = (
        "classifier", "norm", "images", "budget of each attack", "median, ours", "median, others",
        "within 1 % of the best, ours", "others", "optimality, ours", "others",
    )  # fmt: skip
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def distances_attacks() -> str:
    """Each attack by itself."""
    result, rows = load_result("distances"), []
    for row in result["rows"]:
        for attack in row["attacks"]:
            quartiles = ", ".join(_number(attack[key]) for key in ("q25", "median", "q75"))
            spent = f"{attack['forwards']:.0f} + {attack['backwards']:.0f}"
            rows.append(
                (
                    row["classifier"], row["norm"], f"{attack['library']} `{attack['attack']}`",
                    _percent(attack["success"]), quartiles, _percent(attack["optimality"]), _percent(attack["near"]),
                    spent, _ratio(attack),
                )
            )  # fmt: skip
    header = (
        "classifier", "norm", "attack", "success", "quartiles", "optimality", "within 1 % of the best",
        "forwards + backwards", "seconds, theirs / ours [min, max]",
    )  # fmt: skip
    form = ", ".join(sorted({f"`{row['form']}`" for row in result["rows"]}))
    turns = (
        f"Seconds: {result['rounds']} turns on the first {result['rows'][0]['timed']} images; ours in the form {form}."
    )
    return f"{markdown_table(header, rows)}\n\n{turns} {source(result)}"


def distances_settings() -> str:
    """What each attack was given, where that is not its library's default."""
    result = load_result("distances")
    listed = {
        (row["norm"], f"{attack['library']} `{attack['attack']}`", str(row["budget"])): attack["settings"]
        for row in result["rows"]
        for attack in row["attacks"]
    }
    rows = [(*key, ", ".join(f"`{name}={value}`" for name, value in held.items())) for key, held in listed.items()]
    versions = ", ".join(f"{package} {version}" for package, version in result["libraries"].items())
    return f"{markdown_table(('norm', 'attack', 'budget', 'settings'), rows)}\n\n{versions}"


def distances_attackbench() -> str:
    """AttackBench's optimality of ours, beside the best other implementation of each and the best of all attacks."""
    result, rows = load_result("distances_attackbench"), []
    for row in result["rows"]:
        best = max(row["attacks"], key=lambda one: one["optimality"])
        for ours in (one for one in row["attacks"] if one["library"] == "robustgen"):
            like = [one for one in row["attacks"] if one["like"] == ours["attack"]]
            same = max(like, key=lambda one: one["optimality"], default=None)
            rows.append(
                (
                    row["classifier"], row["norm"], f"`{ours['attack']}`", f"{ours['optimality']:.3f}",
                    "–" if same is None else f"{same['optimality']:.3f} {same['library']}",
                    f"{best['optimality']:.3f} {best['library']} `{best['attack']}`",
                )
            )  # fmt: skip
    header = ("classifier", "norm", "attack", "ours", "best of the others' of the same name", "best of all attacks")
    told = f"{_images(result['rows'])}, {result['rows'][0]['budget']:,} passes each."
    return f"{markdown_table(header, rows)}\n\n{told} {source(result)}"


def speed_distances() -> str:
    """How long the same distance takes, ours and theirs."""
    result, rows = load_result("speed-distances"), []
    for row in result["rows"]:
        for line in row["lines"]:
            ours, theirs = (_tried(line[side], line["statistic"]) for side in ("ours", "theirs"))
            silent = "ours do not reach it" if line["theirs"] else "theirs have none that is finite"
            ratio = ratio_cell(line["seconds"]["ratio"]) if line["seconds"] else silent
            rows.append((row["classifier"], row["norm"], line["compared"], line["statistic"], theirs, ours, ratio))
    header = (
        "classifier", "norm", "compared", "distance", "theirs: attack, budget, distance", "ours",
        "seconds, theirs / ours [min, max]",
    )  # fmt: skip
    budgets = ", ".join(map(str, result["budgets"]))
    told = f"{_images(result['rows'])}, budgets {budgets}, {result['pairs']} pairs."
    return f"{markdown_table(header, rows)}\n\n{told} {source(result)}"


def _tried(one: dict[str, Any] | None, statistic: str) -> str:
    if one is None:
        return "–"
    library = "" if one["library"] == "robustgen" else f"{one['library']} "
    return f"{library}`{one['attack']}`, {one['budget']}, {one[statistic]:.4g}"


def _images(rows: Sequence[dict[str, Any]]) -> str:
    """How many, and how many of the classifier that has fewer."""
    fewest = min(rows, key=lambda row: int(row["images"]))
    return f"{max(row['images'] for row in rows)} images ({fewest['images']} of {fewest['classifier']})"


def _ratio(attack: dict[str, Any]) -> str:
    ratio = attack["ratio"]
    if ratio is None:
        return ""
    return f"{ratio_cell(ratio)} of `{attack['like']}`"


def _number(value: float | None) -> str:
    """Four digits; nothing found is a dash."""
    return "–" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
