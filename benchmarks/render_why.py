"""The blocks of docs/why.md."""

from __future__ import annotations

from typing import Any

from robustgen.benchmarks.tables import load_result, markdown_table, source

__all__ = ["why_dimension", "why_gradients", "why_networks", "why_surface", "why_transfer"]


def _share(estimate: dict[str, float], digits: int = 1) -> str:
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"


def why_dimension() -> str:
    """Linear classifiers at several resolutions."""
    result = load_result("why-dimension")
    rows = [
        (
            f"{row['side']} x {row['side']}", f"{row['adversarial']:.2f}", f"{row['random']:.2f}",
            f"{row['adversarial'] / row['random']:.1f}", f"{row['margin']:.2f}",
            *(_share(row[key]) for key in ("clean", "under_random", "under_adversarial")),
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = (
        "pixels", "change, eps sign(w)", "change, random signs", "ratio", "median gap", "right: clean", "random signs",
        "worst change",
    )  # fmt: skip
    slopes = ", ".join(
        f"{name} d^{result['exponents'][key]:.2f}"
        for name, key in (("change by eps sign(w)", "adversarial"), ("by random signs", "random"),
                          ("by eps sign(w) in units of the mean weight", "adversarial_by_weight"),
                          ("by random signs in these units", "random_by_weight"))
    )  # fmt: skip
    what = (
        f"Trained on {result['trained_on']:,} images, tested on {result['test']:,}; "
        f"eps = {255 * result['eps']:.0f}/255. Least squares in logarithms: {slopes}."
    )
    return f"{markdown_table(header, rows)}\n\n{what} {source(result)}"


def why_networks() -> str:
    """The linearisation of networks against the truth."""
    result = load_result("why-dimension")
    rows = [
        (
            network["classifier"], str(network["n"]), f"{255 * row['eps']:.0f}/255",
            *(f"{row[key]:.2f}" for key in ("predicted", "true", "random")), f"{network['margin']:.2f}",
        )
        for network in result["networks"]
        for row in network["rows"]
        if round(255 * row["eps"]) in (1, 4, 8, 24)
    ]  # fmt: skip
    header = ("classifier", "images", "eps", "eps times the L1 norm of g", "true fall, eps sign(g)", "random signs",
              "mean margin")  # fmt: skip
    return f"{markdown_table(header, rows)}\n\n{source(result)}"


def why_surface() -> str:
    """Loss and errors with random and with adversarial changes of one size."""
    result = load_result("why-surface")
    rows = [
        (
            row["classifier"], str(row["n"]), *(f"{row[key]['loss']:.2f}" for key in ("clean", "random", "pgd")),
            *(_share(row[key]["wrong"]) for key in ("clean", "random", "pgd")),
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = ("classifier", "images", "loss: clean", "random signs", "PGD", "wrong: clean", "random signs", "PGD")
    return f"{markdown_table(header, rows)}\n\nChanges of {result['threat']}. {source(result)}"


def why_transfer() -> str:
    """Whom directions of PGD mislead, with intervals."""
    result = load_result("why-transfer")
    names, found = result["names"], {**result["success"]["pgd"], "random signs": result["random"]}
    rows = [(name, *(_share(found[name][target]) for target in names)) for name in (*names, "random signs")]
    what = (
        f"PGD, {result['threat']}, over the {result['n']} of {result['of']} images that all get right; sources are "
        "lines, targets are columns."
    )
    return f"{markdown_table(('source', *names), rows)}\n\n{what} {source(result)}"


def why_gradients() -> str:
    """Distances by the gradient, along it, and how straight the margin is."""
    result = load_result("why-gradients")
    rows = [
        (
            row["classifier"], str(row["n"]), _number(row["by_gradient"]), _number(row["along_sign"]),
            _share(row["crossed"]), f"{100 * row['nonlinear']:.0f} %",
        )
        for row in result["rows"]
    ]  # fmt: skip
    header = ("classifier", "images", "margin / L1 norm of g, median", "class changes along sign(g) at, median",
              "changes at all", "departure from linear, median")  # fmt: skip
    return f"{markdown_table(header, rows)}\n\nDepartures within {result['threat']}. {source(result)}"


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:.3f}"
