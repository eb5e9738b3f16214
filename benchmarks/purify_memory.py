"""Peak memory of a gradient across a purifier against its number of steps, each in a process of its own."""

from __future__ import annotations

import resource
from typing import Any

from robustgen.benchmarks.harness import in_fresh_process, store

CASES = (("full", 10), ("full", 30), ("full", 100), ("autograd", 10), ("autograd", 30))
N = 64


def measure(mode: str, steps: int) -> dict[str, Any]:
    """One gradient; peak resident memory before and after, as the operating system counted it."""
    import torch
    import torch.nn.functional as F

    from robustgen.classifiers import load_classifier
    from robustgen.data import load_data
    from robustgen.defended import defend
    from robustgen.environment import tune_process
    from robustgen.rng import ExampleRng

    tune_process()
    model = defend(load_classifier("fmnist-standard"), f"diffpure:t=0.1,steps={steps}", gradient=mode)
    x, y = load_data("fmnist-test-1k").batch(range(N))
    rng = ExampleRng.of(0, range(N))
    with torch.no_grad():
        model(x, rng)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    leaf = x.requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(leaf, rng), y), leaf)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mode": mode, "steps": steps, "peak_mib": peak / 1024, "gradient_mib": (peak - before) / 1024}


def main() -> None:
    """Measure, print, store."""
    rows = []
    for mode, steps in CASES:
        rows.append(in_fresh_process(measure, mode, steps))
        print(rows[-1], flush=True)
    print(store("purify_memory", {"what": f"diffpure before fmnist-standard, {N} images at once", "rows": rows}))


if __name__ == "__main__":
    main()
