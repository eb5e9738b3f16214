"""The blocks of docs/patches.md."""

from __future__ import annotations

import statistics

from robustgen.benchmarks.tables import load_result, markdown_table, source
from robustgen.tables import interval_cell

__all__ = ["patch_certified", "patch_ladder", "patch_sizes", "patches_speed"]


def patches_speed() -> str:
    """Images x steps a second and success, beside ART."""
    result = load_result("speed-patches")
    rows = [
        (
            str(row["batch"]), *(f"{statistics.median(row['per_second'][side]):,.0f}" for side in ("ours", "theirs")),
            f"{row['ratio']['median']:.1f} [{row['ratio']['min']:.1f}, {row['ratio']['max']:.1f}]",
            *(interval_cell(row["success"][side]) for side in ("ours", "theirs")), str(row["success"]["ours"]["n"]),
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = (
        "batch",
        "images x steps/s, ours",
        "ART",
        "ratio [min, max]",
        "success, ours, %",
        "ART, %",
        "unseen images",
    )
    forms = ", ".join(sorted({row["form"] for row in result["rows"]}))
    return f"{markdown_table(header, rows)}\n\n{result['what']}. Ours in {forms}, ART in float32. {source(result)}"


def patch_sizes() -> str:
    """Success against the side, of one patch for all images and of one for each."""
    result = load_result("patch_sizes")
    universal = {(row["size"], row["classifier"], row["location"]): row for row in result["universal"]}
    rows = []
    for one in result["each"]:
        side, classifier = one["size"], one["classifier"]
        held = [universal.get((side, classifier, location)) for location in ("optimised", "random")]
        cells = [
            "" if one is None else interval_cell(one[key]) for one in held for key in ("success", "random_success")
        ]
        rows.append((f"{side} x {side}", classifier, *cells, interval_cell(one["success"])))
    header = (
        "patch", "classifier", "for all, best place, %", "noise, %", "for all, anywhere, %", "noise, %", "for each, %",
    )  # fmt: skip
    each = [row["n"] for row in result["each"]]
    images = (
        f"{result['universal'][0]['n']} unseen images; for each: {min(each)} to {max(each)}, those classified right"
    )
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {images}. {source(result)}"


def patch_certified() -> str:
    """Certified, attacked and clean accuracy of the same images."""
    result = load_result("patch_defences")
    rows = [
        (
            side["method"], side["classifier"], str(side["n"]), str(row["patch"]),
            *(interval_cell(row[key]) for key in ("certified", "attacked", "clean")), str(len(row["broken"])),
        )
        for side in result["certified"]
        for row in side["rows"]
    ]  # fmt: skip
    header = ("method", "classifier", "images", "side", "certified, %", "attacked, %", "clean, %", "broken")
    spec = result["certified"][0]["spec"]
    told = f"{spec['places']} windows for each way in, {spec['steps']} steps in each."
    return f"{markdown_table(header, rows)}\n\n{told} {source(result)}"


def patch_ladder() -> str:
    """Local gradient smoothing, rung by rung."""
    result = load_result("patch_defences")
    rows = []
    for row in result["ladders"]:
        left, n = round(row["clean"]["value"] * row["n"]), row["n"]
        told = []
        for rung in row["rungs"]:
            left -= rung["broken"]
            told.append(f"{rung['name']} {100 * left / n:.0f}")
        shown = row["purifier"] or "none"
        rows.append((shown, interval_cell(row["clean"]), ", ".join(told), interval_cell(row["robust"])))
    header = ("defence", "clean, %", "right after each rung, %", "robust, %")
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"
