"""How far each way across a purifier is from the exact gradient, and what it costs.

DiffPure (VP-SDE, 20 steps) before fmnist-standard, the cross-entropy of the first test images, the same noise in each
mode. The reference is plain autograd in float64.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.benchmarks.harness import store
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.defended import Defended, defend
from robustgen.environment import tune_process
from robustgen.precision import SearchForm
from robustgen.rng import ExampleRng

PURIFIER = "diffpure:t=0.1,steps=20"
N = 32
MODES = ("full", "autograd", "surrogate", "adjoint", "bpda")


def gradient(model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Of the cross-entropy of each image; and the seconds of the second of two calls."""
    rng, seconds = ExampleRng.of(0, range(len(x))), 0.0
    grad = torch.zeros_like(x)
    for _ in range(2):
        leaf, begun = x.clone().requires_grad_(), time.perf_counter()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf, rng), y, reduction="sum"), leaf)
        seconds = time.perf_counter() - begun
    return grad.double(), seconds


def errors(grad: Tensor, exact: Tensor) -> dict[str, float]:
    """Relative error over all images, mean cosine of an image, share of pixels with the same sign."""
    cosine = F.cosine_similarity(grad.flatten(1), exact.flatten(1)).mean()
    return {
        "relative_error": float((grad - exact).norm() / exact.norm()),
        "cosine": float(cosine),
        "same_sign": float((grad.sign() == exact.sign()).double().mean()),
    }


def main() -> None:
    """Measure, print, store."""
    tune_process()
    classifier = load_classifier("fmnist-standard")
    x, y = load_data("fmnist-test-1k").batch(range(N))
    double = defend(load_classifier("fmnist-standard"), PURIFIER, gradient="autograd").double()
    exact, _ = gradient(double, x.double(), y)
    plain = defend(classifier, PURIFIER)
    models: dict[str, Any] = {mode: plain.crossed_by(mode) for mode in MODES}
    models["full, bfloat16"] = low_precision(plain)
    rows = []
    for mode, model in models.items():
        grad, seconds = gradient(model, x, y)
        rows.append({"mode": mode, **errors(grad, exact), "seconds": seconds})
        print(rows[-1], flush=True)
    print(store("purify_gradients", {"what": f"{PURIFIER} before fmnist-standard, {N} images", "rows": rows}))


def low_precision(model: Defended) -> Defended:
    """Its networks in bfloat16, the image between them in float32."""
    return model.in_form(SearchForm(torch.bfloat16, channels_last=True))


if __name__ == "__main__":
    main()
