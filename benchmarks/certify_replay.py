"""Sequential certification replayed on published logs: draws saved, accuracy lost, and false certificates.

Votes are drawn anew at the rates that a log's radii imply; `fixed` and `anytime` see as many draws as they ask for.
Files are those of Cohen et al. 2019 that the tests read. False certificates: at a probability just below each threshold
of the table, 100,000 sequences looked at to their very end, whether or not the design would have stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from robustgen.benchmarks.harness import store
from robustgen.certify.bounds import lower_bound, probability_for
from robustgen.certify.design import Design, make_design
from robustgen.certify.logs import CertificationLog, read_log
from robustgen.certify.noise import GridNoise

LOGS = Path(__file__).resolve().parent.parent / "tests" / "data" / "cohen2019"
CASES = (
    ("cifar10_resnet110_sigma_0.12.tsv", 0.12, 3072, (0.0, 0.12, 0.25, 0.37)),
    ("cifar10_resnet110_sigma_0.50.tsv", 0.5, 3072, (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)),
    ("imagenet_resnet50_sigma_0.25.tsv", 0.25, 150528, (0.0, 0.25, 0.5, 0.75)),
)
SAMPLES, ALPHA, SELECTION = 100_000, 0.001, 100
REPLAYS, SEQUENCES = 40, 100_000  # the largest loss over the radii comes out too high where replays are few


def rates_of(log: CertificationLog, sigma: float) -> np.ndarray[Any, Any]:
    """The share of votes whose Clopper-Pearson bound at 100,000 draws gives the radius; 0.47 where it abstained."""
    counts = np.unique(np.concatenate([np.arange(SAMPLES // 2, SAMPLES, 20), np.arange(SAMPLES - 3000, SAMPLES + 1)]))
    bounds = lower_bound(counts, np.full(len(counts), SAMPLES), ALPHA)
    found = np.interp(norm.cdf(log.radius / sigma), bounds, counts / SAMPLES)
    return np.where(log.predict < 0, 0.47, np.minimum(found, 1 - 3e-6))


def replay(design: Design, rates: np.ndarray[Any, Any], rng: Any) -> tuple[np.ndarray[Any, Any], float]:
    """Radii, -1 for none, and mean draws an example."""
    radii, draws = [], 0
    for rate in rates.tolist():
        k = reached = before = 0
        for look, n in enumerate(design.looks):
            k, before = k + int(rng.binomial(n - before, rate)), n
            reached = max(reached, design.reached(k, look))
            if design.decided(k, look, reached):
                break
        radii.append(design.radii[reached - 1] if reached else -1.0)
        draws += before + SELECTION
    return np.array(radii), draws / len(rates)


def false_certificates(design: Design, radii: tuple[float, ...], noise: GridNoise, pixels: int) -> float:
    """The largest share, over the table's radii, of sequences just below a threshold that ever reach it."""
    rng, worst = np.random.default_rng(0), 0.0
    for radius in radii[1:]:
        row = design.radii.index(radius)
        p = probability_for(radius + noise.slack(pixels), noise.sigma) + noise.approximation(pixels) - 1e-9
        k, ever = np.zeros(SEQUENCES, dtype=np.int64), np.zeros(SEQUENCES, dtype=bool)
        for look, draws in enumerate(np.diff([0, *design.looks]).tolist()):
            k += rng.binomial(draws, p, SEQUENCES)
            ever |= k >= design.required[row, look]
        worst = max(worst, float(ever.mean()))
    return worst


def measure(file: str, sigma: float, pixels: int, radii: tuple[float, ...], *, profile: str) -> dict[str, Any]:
    """One log under one profile, means over several replays."""
    log, noise = read_log(LOGS / file), GridNoise(sigma)
    rates, rng = rates_of(log, sigma), np.random.default_rng(1)
    design = make_design(
        "anytime", radii=radii, noise=noise, pixels=pixels, samples=SAMPLES, alpha=ALPHA, profile=profile
    )
    thresholds = np.array([probability_for(r, sigma) for r in radii])
    draws, lost = 0.0, np.zeros(len(radii))
    for _ in range(REPLAYS):
        ours, used = replay(design, rates, rng)
        bounds = lower_bound(rng.binomial(SAMPLES, rates), np.full(len(rates), SAMPLES), ALPHA)
        for j, (radius, p) in enumerate(zip(radii, thresholds, strict=True)):
            lost[j] += 100 * (((bounds > p) & log.right).mean() - ((ours >= radius) & log.right).mean()) / REPLAYS
        draws += used / REPLAYS
    return {
        "log": log.name, "profile": profile, "images": len(log), "radii": list(radii), "draws": draws,
        "fewer": (SAMPLES + SELECTION) / draws, "lost": lost.tolist(),
        "false_certificates": false_certificates(design, radii, noise, pixels),
    }  # fmt: skip


def main() -> None:
    """Replay, print, store."""
    rows = []
    for profile in ("exact", "fast"):
        for case in CASES:
            row = measure(*case, profile=profile)
            rows.append(row)
            print(row["log"], profile, f"{row['fewer']:.1f} x fewer, lost {max(row['lost']):.2f} at most, mean "
                  f"{np.mean(row['lost']):.2f}, false {row['false_certificates']:.1e}", flush=True)  # fmt: skip
    what = f"{REPLAYS} replays of each log; false certificates in {SEQUENCES} sequences a radius, alpha = {ALPHA}"
    print(store("certify_replay", {"what": what, "rows": rows}))


if __name__ == "__main__":
    main()
