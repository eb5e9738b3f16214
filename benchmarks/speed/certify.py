"""Certification against the reference algorithm as one writes it down: seconds for the same images, and memory.

plain: Cohen et al.'s CERTIFY in float32, noise by `torch.randn_like` added to copies of the image, batch after batch.
fixed: `robustgen certify --method fixed`, as many draws. anytime: the same table of radii, draws as needed.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from robustgen.benchmarks.harness import compare, in_fresh_process, store
from robustgen.certify.certify import Certificate, certify
from robustgen.certify.design import make_design
from robustgen.certify.noise import GridNoise
from robustgen.certify.smoothed import smoothing_base
from robustgen.certify.votes import Voter
from robustgen.classifier import Classifier
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.environment import tune_process
from robustgen.precision import choose_form

CLASSIFIER, SIGMA, RADII = "fmnist-standard", 0.12, (0.0, 0.06, 0.12, 0.18, 0.24)
SELECTION, SAMPLES, ALPHA, BATCH = 100, 100_000, 0.001, 1000
IDS, PAIRS = range(2), 2


def plain_votes(classifier: nn.Module, x: Tensor, samples: int, classes: int) -> Tensor:
    """(classes,) counts of one image (C, H, W) under normal noise."""
    counts = torch.zeros(classes, dtype=torch.long)
    while samples:
        size = min(BATCH, samples)
        batch = x.repeat(size, 1, 1, 1)
        counts += torch.bincount(classifier(batch + SIGMA * torch.randn_like(batch)).argmax(1), minlength=classes)
        samples -= size
    return counts


def plain(classifier: Classifier, x: Tensor, classes: int) -> Callable[[], list[float]]:
    """Radii, -1 for an abstention."""

    @torch.no_grad()
    def run() -> list[float]:
        radii = []
        for image in x:
            chosen = int(plain_votes(classifier, image, SELECTION, classes).argmax())
            right = int(plain_votes(classifier, image, SAMPLES, classes)[chosen])
            low = binomtest(right, SAMPLES).proportion_ci(1 - 2 * ALPHA, method="exact").low
            radii.append(SIGMA * float(norm.ppf(low)) if low > 0.5 else -1.0)
        return radii

    return run


def ours(voter: Voter, x: Tensor, y: Tensor, method: str) -> Callable[[], list[Certificate]]:
    """Certificates in the order of the images; a new voter's noise is drawn anew."""
    pixels = x[0].numel()
    design = make_design(method, radii=RADII, noise=voter.noise, pixels=pixels, samples=SAMPLES, alpha=ALPHA)

    def run() -> list[Certificate]:
        found: list[Certificate] = []
        examples = [(k, int(y[k]), x[k].double().numpy()) for k in range(len(x))]
        certify(voter, examples, design, selection=SELECTION, finish=found.append)
        return sorted(found, key=lambda one: one.id)

    return run


def measure() -> dict[str, Any]:
    """Both methods against the plain loop, in turn."""
    tune_process()
    classifier, dataset = load_classifier(CLASSIFIER), load_data("fmnist-test-1k")
    x, y = dataset.batch(list(IDS))
    form = choose_form(classifier, *dataset.batch(range(64)), "auto")[0].form
    base = smoothing_base(classifier, None, SIGMA, form)
    voter = Voter(base, GridNoise(SIGMA), seed=0, classes=dataset.classes, batch_size=BATCH, device=torch.device("cpu"))
    theirs = plain(classifier, x, dataset.classes)
    held: dict[str, Any] = {"form": str(form), "radii_plain": theirs()}
    for method in ("fixed", "anytime"):
        side = ours(voter, x, y, method)
        found = side()
        held[method] = {
            **compare(side, theirs, pairs=PAIRS).summary(),
            "radii": [one.radius for one in found], "draws": float(np.mean([one.samples for one in found])),
        }  # fmt: skip
        print(method, held[method]["ratio"], flush=True)
    return held


def peak(samples: int) -> float:
    """Peak resident memory in MiB of a process that certifies one image with so many draws."""
    tune_process()
    classifier, dataset = load_classifier(CLASSIFIER), load_data("fmnist-test-1k")
    noise = GridNoise(SIGMA)
    voter = Voter(classifier, noise, seed=0, classes=dataset.classes, batch_size=BATCH, device=torch.device("cpu"))
    x, y = dataset.batch([0])
    design = make_design("fixed", radii=RADII, noise=noise, pixels=x[0].numel(), samples=samples, alpha=ALPHA)
    found: list[Certificate] = []
    certify(voter, [(0, int(y[0]), x[0].double().numpy())], design, selection=SELECTION, finish=found.append)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure, print, store."""
    held = measure()
    held["memory_mib"] = {str(samples): in_fresh_process(peak, samples) for samples in (1_000, SAMPLES)}
    what = f"{CLASSIFIER}, sigma {SIGMA:g}, {len(IDS)} images, {SAMPLES:,} draws, alpha {ALPHA:g}, batches of {BATCH}"
    print(held["memory_mib"], store("speed-certify", {"what": what, **held}, module="speed.certify"))


if __name__ == "__main__":
    main()
