"""The blocks of docs/purification.md."""

from __future__ import annotations

from robustgen.benchmarks.tables import load_result, markdown_table, ratio_cell, source

__all__ = ["purify_gradients", "purify_memory", "purify_speed"]


def purify_gradients() -> str:
    """Each way across a purifier against float64."""
    result = load_result("purify_gradients")
    rows = [
        (
            row["mode"], f"{row['relative_error']:.1e}", f"{row['cosine']:.4f}", f"{100 * row['same_sign']:.1f} %",
            f"{row['seconds']:.1f}",
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = ("gradient", "relative error", "cosine", "pixels of the same sign", "seconds")
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def purify_memory() -> str:
    """Peak memory against steps."""
    result = load_result("purify_memory")
    rows = [
        (row["mode"], str(row["steps"]), f"{row['peak_mib']:.0f} MiB", f"{row['gradient_mib']:.0f} MiB")
        for row in result["rows"]
    ]
    header = ("gradient", "steps", "peak resident memory", "of it for the gradient")
    return f"{markdown_table(header, rows)}\n\n{result['what']}. {source(result)}"


def purify_speed() -> str:
    """Our gradient and our purification beside obvious code and a pipeline."""
    result = load_result("speed-purify")
    sides = {"full gradient / plain autograd, obvious loop": result["full / obvious autograd"]}
    sides |= {f"purified images, {name} / diffusers' DDIM": side for name, side in result["pipeline"].items()}
    rows = []
    for name, side in sides.items():
        ours, theirs = (result["images"] / sorted(side[key])[len(side[key]) // 2] for key in ("ours", "theirs"))
        rows.append((name, f"{ours:.1f}", f"{theirs:.1f}", ratio_cell(side["ratio"])))
    header = ("what", "images/s, ours", "images/s, theirs", "ratio [min, max]")
    least = f"The exact gradient takes {result['over_the_least']:.2f} times the least that checkpointing can take; "
    same = f"it differs from plain autograd's by {result['difference']:.0e}."
    return f"{markdown_table(header, rows)}\n\n{least}{same} {result['what']}. {source(result)}"
