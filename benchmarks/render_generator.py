"""The blocks of docs/generator.md."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from robustgen.benchmarks.tables import load_result, markdown_table, ratio_cell, source

__all__ = [
    "edm_cifar10",
    "generator_cas",
    "generator_sampling",
    "generator_sampling_speed",
    "generator_training",
    "orders",
    "time_to_quality",
]


def orders() -> str:
    """Measured orders of convergence."""
    result = load_result("orders")
    steps = result["rows"][0]["steps"]
    header = ("sampler", *(f"{a} to {b} steps" for a, b in pairwise(steps)))
    rows = [(row["sampler"], *(f"{order:.3f}" for order in row["orders"])) for row in result["rows"]]
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def generator_cas() -> str:
    """What a small network learns from generated images, and from real ones, in as many steps."""
    result = load_result("generator_cas")
    rows = []
    for name, row in result["rows"].items():
        given, accuracy = row.get("provenance"), row["accuracy"]
        what = name
        if given is not None:
            sampler = given["sampler"]
            what = f"{given['n']} images of {given['generator']} by {sampler['name']}, {sampler['steps']} steps"
        figure = f"{100 * accuracy['value']:.1f} % [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
        rows.append((what, figure, str(row["steps"]), f"{row['seconds']:.0f}"))
    table = markdown_table(("trained on", "accuracy on real test images", "steps", "seconds"), rows)
    return f"{table}\n\n{result['what']}. {source(result)}"


def generator_training() -> str:
    """Our training step against the plain loop."""
    result = load_result("speed-generator-training")
    rows = []
    for name, side in result.items():
        if isinstance(side, dict) and "ratio" in side:
            rows.append((name, *_rates(side, result["images"]), ratio_cell(side["ratio"])))
    header = ("what", "images/s, ours", "images/s, plain loop", "ratio [min, max]")
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def generator_sampling() -> str:
    """Samplers and steps: distance, what the images teach, images a second."""
    result = load_result("speed-generator-sampling")
    rows = []
    for name, row in result["rows"].items():
        at_n = "" if row["n"] < result["n"] else _with_error(row["fd"], row["fd_error"])
        few = _with_error(row["fd_few"], row["fd_few_error"])
        score = f"{100 * row['cas']['value']:.1f} %" if "cas" in row else ""
        score += f" (of {row['n']})" if score and row["n"] < result["n"] else ""
        rows.append((name, at_n, few, score, f"{row['images_per_second']:.1f}" if "seconds" in row else ""))
    fd, n = "FD(fmnist-standard, penultimate, 64, N={})", result["n"]
    header = ("sampler", fd.format(n), fd.format(result["few"]), f"CAS of {n} images", "images/s")
    return f"{markdown_table(header, rows)}\n\n{source(result)}"


def generator_sampling_speed() -> str:
    """Our sampling and diffusers' on the same network, in turn."""
    result = load_result("speed-generator-sampling")
    rows = []
    for name, side in result["timed"].items():
        ours, theirs = name.split(" / ")
        distance = (_with_error(result["rows"][one]["fd"], result["rows"][one]["fd_error"]) for one in (ours, theirs))
        rows.append(
            (ours.removeprefix("ours: "), theirs.removeprefix("diffusers: "), *distance, ratio_cell(side["ratio"]))
        )
    header = ("ours", "diffusers", "FD, ours", "FD, diffusers", "images/s, ours / diffusers [min, max]")
    return f"{markdown_table(header, rows)}\n\n{source(result)}"


def time_to_quality() -> str:
    """What the images teach after so many minutes of training."""
    result = load_result("time_to_quality")
    rows = []
    for row in result["rows"]:
        score = row["cas"]["accuracy"]
        interval = f"[{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
        rows.append(
            (
                f"{row['images']:,}", f"{row['seconds'] / 60:.0f}", f"{row['validation_loss']:.4f}",
                f"{100 * score['value']:.1f} % {interval}",
            )
        )  # fmt: skip
    header = ("images shown", "minutes", "loss on held-out images", "accuracy on real test images")
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def edm_cifar10() -> str:
    """The paper's CIFAR-10 recipe for a few minutes, with a kill in the middle."""
    result = load_result("edm_cifar10")
    rows = [
        (f"{row['images']:,}", f"{row['seconds']:.0f}", f"{row['loss']:.3f}", f"{row['validation_loss']:.3f}")
        for row in result["metrics"]
    ]
    table = markdown_table(("images shown", "seconds", "loss since the line before", "loss on held-out images"), rows)
    estimate = result["estimate"]
    cost = (
        f"The whole recipe: {estimate['flops']:.1e} operations, an estimated {estimate['h100_hours']:,.0f} hours of "
        f"one H100 at {estimate['at_flops_per_second'] / 1e12:.0f} TFLOP/s."
    )
    return f"{table}\n\n{result['what']}, ended by SIGKILL once and gone on with. {cost} {source(result)}"


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def _rates(side: dict[str, Any], images: int) -> tuple[str, str]:
    ours, theirs = sorted(side["ours"]), sorted(side["theirs"])
    return f"{images / ours[len(ours) // 2]:.0f}", f"{images / theirs[len(theirs) // 2]:.0f}"
