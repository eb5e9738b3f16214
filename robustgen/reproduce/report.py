"""A reproduced table for people: Markdown, CSV, a picture; and as JSON, from which all of these are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from robustgen import durable, tables
from robustgen.reproduce.experiment import WHICH, Scale, Table
from robustgen.reproduce.quality import ImageDistance
from robustgen.reproduce.runner import Outcome, by_arm
from robustgen.reproduce.verdict import judge_claim, paired_interval
from robustgen.statistics import proportion

__all__ = ["csv_table", "markdown", "plot", "result", "write"]

_PAPER = {"robust_best": "aa_best", "robust_last": "aa_last"}  # what AutoAttack found there
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#666666"  # Okabe & Ito: told apart by everybody


def result(
    table: Table, scale: Scale, found: list[Outcome], *, training: str,
    distances: Mapping[str, ImageDistance] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is shown, as plain values.

    Args:
        table, scale: what was run.
        found: what has been run so far.
        training: what was trained, in words.
        distances: of the generated images of arms from real ones.
    """
    rows, found = [], sorted(found, key=lambda outcome: outcome.seed)
    for arm in table.arms:
        mine = [outcome for outcome in found if outcome.arm == arm.name]
        row: dict[str, Any] = {"arm": arm.name, "ratio": arm.ratio, "paper": arm.paper, "seeds": len(mine)}
        if distances and arm.name in distances:
            row["image_distance"] = asdict(distances[arm.name])
        if mine:
            for which in table.attacked:
                for kind in ("clean", "robust"):
                    row[f"{kind}_{which}"] = _figure(np.array([getattr(one, kind)[which] for one in mine]))
            row["best_epochs"], row["epochs"] = [one.best_epoch for one in mine], mine[0].epochs
            row["seconds"] = sum(one.seconds for one in mine)
        rows.append(row)
    outcomes = by_arm(found)
    claims = []
    for claim in table.claims:
        known = all((term.arm, term.which) in outcomes for term in claim.terms)
        enough = known and min(len(outcomes[term.arm, term.which]) for term in claim.terms) >= 2
        claims.append(
            asdict(judge_claim(claim, outcomes)) if enough else {"text": claim.text, "verdict": "not run yet"}
        )
    return {
        "table": table.name, "title": table.title, "source": table.source, "scale": scale.name,
        "description": scale.description, "training": training, "plan": scale.plan, "n": scale.n,
        "attacked": list(table.attacked), "rows": rows, "claims": claims,
    }  # fmt: skip


def _figure(values: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Mean of (seeds, images), with a 95 % interval over both; over the images alone where there is one seed."""
    if len(values) == 1:
        return asdict(proportion(int(values.sum()), values.size))
    value, low, high = paired_interval(values.astype(np.float64))
    return {"value": value, "low": max(0.0, low), "high": min(1.0, high)}


def markdown(held: dict[str, Any]) -> str:
    """Two tables: the arms with the paper's figures beside ours, and the claims with their verdicts."""
    attacked = f"Robust: plan `{held['plan']}` on {held['n']} test images; intervals of 95 % over seeds and images."
    told = "In brackets the paper's figures, clean and AutoAttack."
    if far := [row["image_distance"] for row in held["rows"] if "image_distance" in row]:
        what = f"{far[0]['n']:,} images from as many test images, in features of {far[0]['network']}"
        told += f" FD: Fréchet distance of {what}; in brackets FID."
    head = f"**{held['title']}** ({held['source']})"
    parts = [head, f"{held['description']} {held['training']} {attacked} {told}", _arms(held), _claims(held)]
    return "\n\n".join(parts)


def _arms(held: dict[str, Any]) -> str:
    columns, both = _columns(held), len(held["attacked"]) == len(WHICH)
    header = ["arm", "seeds", "best epoch", *(column.replace("_", ", ") for column in columns)]
    header += ["best - last"] * both
    rows = []
    for row in held["rows"]:
        cells = [row["arm"], str(row["seeds"])]
        if row["seeds"]:
            cells.append(f"{', '.join(map(str, row['best_epochs']))} of {row['epochs']}{_paper(row, 'best_epoch', '')}")
            cells += [_cell(row, column) for column in columns]
            cells += [_gap(row)] if both else []
        else:
            cells += ["not run yet"] + [""] * (len(header) - 3)
        rows.append(cells)
    if any("image_distance" in row for row in held["rows"]):
        for cells, row in zip((header, *rows), (None, *held["rows"]), strict=True):
            cells.insert(1, "FD of the images" if row is None else _image_distance(row))
    return tables.markdown_table(header, rows)


def _columns(held: dict[str, Any]) -> list[str]:
    return [f"{kind}_{which}" for kind in ("clean", "robust") for which in held["attacked"]]


def _image_distance(row: dict[str, Any]) -> str:
    held = row.get("image_distance")
    return "" if held is None else f"{held['value']:.3g} ± {held['error']:.1g}{_paper(row, 'fid', 'g')}"


def _gap(row: dict[str, Any]) -> str:
    """Best minus last, in points."""
    gap, theirs = 100 * (row["robust_best"]["value"] - row["robust_last"]["value"]), row["paper"]
    told = f" ({theirs['aa_best'] - theirs['aa_last']:+.2f})" if {"aa_best", "aa_last"} <= theirs.keys() else ""
    return f"{gap:+.1f}{told}"


def _claims(held: dict[str, Any]) -> str:
    rows = []
    for claim in held["claims"]:
        if "value" not in claim:
            rows.append((claim["text"], "", "", claim["verdict"]))
            continue
        measured = f"{100 * claim['value']:+.2f} [{100 * claim['low']:+.2f}, {100 * claim['high']:+.2f}]"
        if claim["margin"]:
            measured += f", margin {100 * claim['margin']:g}"
        paper = "" if claim["paper"] is None else f"{100 * claim['paper']:+.2f}"
        rows.append((claim["text"], measured, paper, f"**{claim['verdict']}**"))
    return tables.markdown_table(("claim", "measured, points", "paper", "verdict"), rows)


def _cell(row: dict[str, Any], column: str) -> str:
    return tables.interval_cell(row[column]) + _paper(row, _PAPER.get(column, column), ".2f")


def _paper(row: dict[str, Any], column: str, form: str) -> str:
    return f" ({row['paper'][column]:{form}})" if column in row["paper"] else ""


def csv_table(held: dict[str, Any]) -> str:
    """The arms, one line each, in fractions of 1."""
    columns = _columns(held)
    paper_columns = [_PAPER.get(column, column) for column in columns]
    parts = [f"{c}{part}" for c in columns for part in ("", "_low", "_high")]
    rows = []
    for row in held["rows"]:
        figures = [row.get(c, {}).get(part, "") for c in columns for part in ("value", "low", "high")]
        paper = [row["paper"].get(name, "") for name in paper_columns]
        rows.append([row["arm"], row["ratio"], row["seeds"], *figures, *paper])
    return tables.csv_table(["arm", "ratio", "seeds", *parts, *(f"paper_{name}" for name in paper_columns)], rows)


def plot(held: dict[str, Any], path: Path) -> None:
    """Robust accuracy for each arm, of the best epoch and maybe the last, ours and the paper's side by side."""
    from matplotlib.figure import Figure  # of the extra "report"

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    places = np.arange(len(held["rows"]))
    styles = {"best": (_BLUE, "o"), "last": (_ORANGE, "s")}
    line = "-" if len({row["ratio"] for row in held["rows"]}) > 1 else "none"  # arms of one amount have no order
    for which, (colour, mark) in ((which, styles[which]) for which in held["attacked"]):
        style: dict[str, Any] = {"color": colour, "marker": mark, "linestyle": line, "label": f"{which} epoch"}
        shown = [(k, row[f"robust_{which}"]) for k, row in enumerate(held["rows"]) if row["seeds"]]
        value = np.array([100 * one["value"] for _, one in shown])
        span = np.abs(np.array([[100 * one[end] for _, one in shown] for end in ("low", "high")]) - value)
        axes[0].errorbar([k for k, _ in shown], value, span, capsize=3, **style)
        name = f"aa_{which}"
        paper = [(k, row["paper"][name]) for k, row in enumerate(held["rows"]) if name in row["paper"]]
        axes[1].plot([k for k, _ in paper], [v for _, v in paper], **style)
    for axis, title in zip(axes, (f"here ({held['scale']})", "the paper"), strict=True):
        axis.set_title(title)
        axis.set_xticks(places, [row["arm"] for row in held["rows"]], rotation=30, ha="right")
        axis.set_ylabel("robust accuracy, %")
        axis.grid(axis="y", color=_GREY, alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def write(held: dict[str, Any], out: Path) -> None:
    """OUT/TABLE.json, .md, .csv, and .png where matplotlib is there."""
    durable.write_json(out / f"{held['table']}.json", held)
    durable.replace(out / f"{held['table']}.md", (markdown(held) + "\n").encode())
    durable.replace(out / f"{held['table']}.csv", csv_table(held).encode())
    if find_spec("matplotlib") is not None:
        plot(held, out / f"{held['table']}.png")
