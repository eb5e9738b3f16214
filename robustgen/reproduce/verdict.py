"""Whether the data carry a claim: a paired interval over seeds and test images, and the verdict that follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robustgen.errors import SpecError
from robustgen.reproduce.experiment import Claim

__all__ = ["Outcomes", "Verdict", "judge_claim", "paired_interval"]

Outcomes = Mapping[tuple[str, str], npt.NDArray[np.bool_]]  # (arm, "best" or "last") -> (seeds, images), robust or not


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A claim and what the data say of it.

    Attributes:
        text: the claim.
        value, low, high: the quantity it is about, in points of accuracy (fractions of 1), with its 95 % interval.
        margin, kind: see `Claim`.
        verdict: "holds", "does not hold", or "undecided at this n".
        seeds, images: behind it.
        paper: the same quantity in the paper's figures, as a fraction of 1; None where it has them not.
    """

    text: str
    value: float
    low: float
    high: float
    margin: float
    kind: str
    verdict: str
    seeds: int
    images: int
    paper: float | None


def paired_interval(d: npt.NDArray[np.float64], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of d (seeds, images) with its interval, where seeds and images are both drawn at random.

    d[s, i] is a difference between arms for the same image and the same seed. Means over a seed vary by training,
    means over an image by which images happen to be in the test set; both parts are added,

        var = var_s(mean_i d) / S + var_i(mean_s d) / N,

    which counts their interaction twice and so is never too small on average. Degrees of freedom by Satterthwaite 1946.

    Args:
        d: (S, N), S and N of 2 or more.
        level: of the interval.

    Raises:
        SpecError: too few seeds or images.
    """
    seeds, images = d.shape
    if seeds < 2 or images < 2:
        raise SpecError(f"an interval over seeds and images needs two of each, got {seeds} and {images}.")
    from scipy.stats import t  # scipy.stats takes half a second to import

    by_seed, by_image = d.mean(1).var(ddof=1) / seeds, d.mean(0).var(ddof=1) / images
    mean, variance = float(d.mean()), float(by_seed + by_image)
    if variance == 0:
        return mean, mean, mean
    freedom = variance**2 / (by_seed**2 / (seeds - 1) + by_image**2 / (images - 1))
    half = float(t.ppf(0.5 + level / 2, freedom)) * math.sqrt(variance)
    return mean, mean - half, mean + half


def judge_claim(claim: Claim, outcomes: Outcomes) -> Verdict:
    """Test a claim on the outcomes of the seeds that all its arms have.

    "above" holds where the whole interval lies above the margin, and does not hold where none of it does; "not-above"
    the other way round. Anything else is undecided: the data do not carry a verdict.
    """
    parts = [term.factor * outcomes[term.arm, term.which].astype(np.float64) for term in claim.terms]
    seeds = min(len(part) for part in parts)
    d = np.sum([part[:seeds] for part in parts], axis=0)
    value, low, high = paired_interval(d)
    above, below = low > claim.margin, high <= claim.margin
    holds, fails = (above, below) if claim.kind == "above" else (below, above)
    verdict = "holds" if holds else "does not hold" if fails else "undecided at this n"
    paper = None if claim.paper is None else claim.paper / 100
    return Verdict(
        text=claim.text, value=value, low=low, high=high, margin=claim.margin, kind=claim.kind, verdict=verdict,
        seeds=seeds, images=d.shape[1], paper=paper,
    )  # fmt: skip
