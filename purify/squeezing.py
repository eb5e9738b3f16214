"""Feature squeezing: a detector that compares what the classifier says of an image and of squeezed copies of it.

A detector changes what an attack is: the adversary wins only where the classifier is wrong *and* the image passes; a
clean image that is flagged is an error of the defence. Its threshold is set on clean images that nothing else uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustgen.attacks.losses import margin
from robustgen.errors import SpecError
from robustgen.purify.base import run_chain
from robustgen.purify.bit_depth import BitDepth
from robustgen.purify.median import Median
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

__all__ = ["Detector", "bypass", "calibrate", "squeezing_score"]

_SQUEEZERS = (BitDepth(bits=5), Median(size=2))


def squeezing_score(classifier: nn.Module, x: Tensor) -> Tensor:
    """(B,) the largest L1 distance between the probabilities of x (B, C, H, W) and those of a squeezed copy, 0 to 2.

    Source: Xu et al. 2018, arXiv:1704.01155, eq. (1) and section V; 5 bits and a median of 2 x 2.
    Differs: without their third squeezer, non-local means. Differentiable: bits straight through, the median exactly.
    """
    rng = ExampleRng.of(0, range(len(x)))
    own = classifier(x).softmax(1)
    distances = [
        (own - classifier(run_chain(squeezer.chain(None, rng), x)).softmax(1)).abs().sum(1) for squeezer in _SQUEEZERS
    ]
    return torch.stack(distances).amax(0)


@dataclass(frozen=True)
class Detector:
    """A classifier with a threshold on its squeezing score.

    Attributes:
        classifier: (B, C, H, W) in [0, 1] -> logits.
        threshold: an image with a larger score is flagged.
    """

    classifier: nn.Module
    threshold: float

    @torch.no_grad()
    def flags(self, x: Tensor) -> Tensor:
        """(B,) bool."""
        return squeezing_score(self.classifier, x) > self.threshold

    @torch.no_grad()
    def beaten(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) bool: misclassified and not flagged."""
        wrong: Tensor = self.classifier(x).argmax(1) != y
        return wrong & ~self.flags(x)


def calibrate(classifier: nn.Module, x: Tensor, rate: float = 0.05) -> Detector:
    """A detector that flags this share of clean images x (N, C, H, W).

    Raises:
        SpecError: a rate that is none, or too few images to tell it.
    """
    if not 0 < rate < 1:
        raise SpecError(f"the false-positive rate must be in (0, 1), got {rate:g}.")
    if len(x) * rate < 1:
        least = round(1 / rate)
        raise SpecError(f"a false-positive rate of {rate:g} needs {least} clean images or more, got {len(x)}.")
    with torch.no_grad():
        scores = torch.cat([squeezing_score(classifier, part) for part in x.split(250)])
    return Detector(classifier, float(scores.double().quantile(1 - rate, interpolation="higher")))


def bypass(
    detector: Detector, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int = 0, steps: int = 100,
    rel_step: float = 0.05, weights: Sequence[float] = (1.0, 10.0),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attack classifier and detector at once: PGD on the margin plus the score where it exceeds half the threshold.

    Source: He et al. 2017, arXiv:1706.04701, section 4: the detector's distance joins the loss.

    Args:
        detector: what is attacked.
        x, y: images (B, C, H, W) in [0, 1] and labels.
        threat: what the adversary may do.
        seed: of the random starts, one for each weight.
        steps, rel_step: of PGD, the step as a fraction of eps.
        weights: of the score in the loss; one run each.

    Returns:
        (B, C, H, W) adversarial images, the clean one where none was found; and (B,) bool, whether one was.
    """
    found, won = x.clone(), detector.beaten(x, y)
    for k, weight in enumerate(weights):
        at = threat.random_start(x, ExampleRng.of(seed, range(len(x)), [k] * len(x)))
        for _ in range(steps):
            leaf = at.detach().requires_grad_()
            excess = (squeezing_score(detector.classifier, leaf) - detector.threshold / 2).clamp(min=0)
            loss = margin(detector.classifier(leaf), y).clamp(min=-1) + weight * excess
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            at = threat.project(x, at - rel_step * threat.eps * threat.steepest(grad))
            fresh = detector.beaten(at, y) & ~won & threat.contains(x, at)
            found[fresh], won = at[fresh].detach(), won | fresh
            if won.all():
                return found, won
    return found, won
