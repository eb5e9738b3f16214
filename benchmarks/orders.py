"""Orders of convergence of the samplers, measured against the closed form of the flow for Gaussian data."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from robustgen.benchmarks.harness import store
from robustgen.generator.analytic import GaussianDenoiser
from robustgen.generator.samplers import DpmSolver, Euler, Heun, denoise_with, karras_sigmas

STEPS = (18, 36, 72, 144, 288)
STD, SIGMA_MIN, SIGMA_MAX = 0.5, 0.002, 80.0


def main() -> None:
    """Measure, print, store: the error at sigma_min, since the last step to 0 is of order 1 for all."""
    denoiser = GaussianDenoiser(torch.zeros(1, 1, 1), STD)
    start = torch.full((1, 1, 1, 1), SIGMA_MAX, dtype=torch.float64)
    exact = float(denoiser.flow(start, SIGMA_MAX, SIGMA_MIN))
    rows = []
    for name, kind in (("euler", Euler), ("heun", Heun), ("dpm++", DpmSolver)):
        errors = []
        for steps in STEPS:
            sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)[:-1]
            end = kind(steps=steps).run(denoise_with(denoiser, None), start, sigmas, torch.zeros)
            errors.append(abs(float(end) - exact))
        orders = [math.log2(a / b) for a, b in pairwise(errors)]
        rows.append({"sampler": name, "steps": list(STEPS), "errors": errors, "orders": orders})
        print(name, " ".join(f"{order:.3f}" for order in orders))
    what = f"Gaussian data, std {STD}, from sigma {SIGMA_MAX:g} to {SIGMA_MIN:g} on Karras' sigmas, float64"
    print(store("orders", {"what": what, "rows": rows}))


if __name__ == "__main__":
    main()
