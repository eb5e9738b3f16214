"""How much faster than plain float32 a query can be at most on this processor, and how near we are.

`standard` must ask every query of the reference for an example that stays robust, so its ratio is that of a query's
time. The reference asks in plain float32. The least that a query can take is its multiplications at the rate of a
large bfloat16 matrix product, with everything else free.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import robustgen
from robustgen.benchmarks.harness import store
from robustgen.environment import tune_process
from robustgen.precision import SearchForm, SearchModel, choose_form

CASES = (("fmnist-at", (1, 28, 28)), ("fmnist-at-l2", (1, 28, 28)), ("cifar10-at", (3, 32, 32)))
BATCH = 250


def fastest(work: Callable[[], object], repeats: int = 15) -> float:
    """Seconds of the best of some repeats."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Multiplications and additions a second of a square matrix product."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return size**3 / fastest(lambda: a @ b)


def gradient(model: nn.Module, x: Tensor) -> None:
    """One white-box query."""
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(model(leaf).sum(), leaf)


def main() -> None:
    """Measure, print, store."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    tune_process()
    peak = product_rate(torch.bfloat16)
    rows = []
    for name, shape in CASES:
        classifier = robustgen.load_classifier(name)
        x = torch.rand(BATCH, *shape)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            classifier(x[:1])
        macs = counter.get_total_flops() / 2
        plain = SearchModel(classifier, SearchForm())
        chosen, _ = choose_form(classifier, x[:64], torch.zeros(64, dtype=torch.int64))
        with torch.no_grad():
            forward = {form: fastest(partial(m, x)) / BATCH for form, m in (("plain", plain), ("ours", chosen))}
        both = {form: fastest(partial(gradient, m, x)) / BATCH for form, m in (("plain", plain), ("ours", chosen))}
        bound = macs / peak
        rows.append(
            {
                "classifier": name, "form": str(chosen.form), "million_macs": macs / 1e6, "forward": forward,
                "gradient": both, "bound_forward": bound, "most": forward["plain"] / bound,
                "got_forward": forward["plain"] / forward["ours"], "got_gradient": both["plain"] / both["ours"],
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    print(store("speed-limit", {"peak_gmacs": peak / 1e9, "rows": rows}, module="speed.limit"))


if __name__ == "__main__":
    main()
