"""The blocks of docs/patches.md."""

from __future__ import annotations

import statistics

from robustgen.benchmarks.tables import load_result, markdown_table, source
from robustgen.tables import interval_cell

__all__ = [
    "patch_certified", "patch_ladder", "patch_sizes", "patches_speed", "vanishing", "vanishing_reference",
]  # fmt: skip


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


_CONDITIONS = {"none": "no patch", "noise": "uniform noise", "grey": "grey", "trained": "trained"}


def vanishing() -> str:
    """AP and recall of the bundled detector with no patch, noise, grey and a trained one, by share."""
    result = load_result("vanishing")
    rows = []
    for share in dict.fromkeys(row["share"] for row in result["rows"]):
        first, *others = [row for row in result["rows"] if row["share"] == share]
        for key, name in _CONDITIONS.items():
            cells = [interval_cell(first["conditions"][key][measure]) for measure in ("ap50", "ap", "recall", "found")]
            more = ", ".join(f"{100 * row['conditions'][key]['recall']['value']:.1f}" for row in others)
            rows.append((f"{100 * share**2:.0f} %", name, *cells, more))
        difference = interval_cell(first["trained_minus_noise"]["recall"])
        more = ", ".join(f"{100 * row['trained_minus_noise']['recall']['value']:.1f}" for row in others)
        rows.append((f"{100 * share**2:.0f} %", "trained minus noise", "", "", difference, "", more))
    header = ("of the box", "patch", "AP50, %", "AP, %", "recall, %", "found as any class, %", "recall, other seeds")
    one = result["rows"][0]
    what = (
        f"{result['what']}; {one['steps']} steps on {one['trained_on']} scenes, measured on {one['n']} with "
        f"{one['objects']} objects; {one['transforms']}."
    )
    return f"{markdown_table(header, rows)}\n\n{what} {source(result)}"


def vanishing_reference() -> str:
    """How far our AP is from that of pycocotools."""
    held = load_result("vanishing")["reference"]
    return (
        f"On {held['n']} scenes without a patch, AP at the ten thresholds differs from that of `pycocotools` by at "
        f"most {held['largest']:.1e}."
    )
