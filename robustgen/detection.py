"""`robustgen detect`: a detector of adversarial images, its false positives, and attacks that know of it or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from robustgen.api import attack
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.purify.squeezing import bypass, calibrate
from robustgen.statistics import Estimate, proportion
from robustgen.threat import ThreatModel

__all__ = ["measure_detector"]


def measure_detector(
    classifier: str, threat: str, *, data: str, data_dir: Path | None, n: int, rate: float, steps: int, seed: int,
    device: str,
) -> dict[str, Any]:  # fmt: skip
    """Feature squeezing before a classifier.

    The threshold is set on the last images of the data set, as many as are needed and none of the first n.

    Args:
        classifier, threat, data, data_dir, seed, device: as in `evaluate`.
        n: images that are attacked.
        rate: of false positives that the threshold is set for.
        steps: of the attack that knows the detector.

    Returns:
        false_positives: share of the clean images that are flagged.
        clean: right and not flagged.
        robust_blind: the adversary does not win by APGD on the classifier alone.
        robust: nor by an attack that has the detector in its loss; all with intervals.

    Raises:
        SpecError, ArtifactError: a wrong request, or too few images beside the n to set the threshold on.
    """
    limits, where = ThreatModel.parse(threat), pick_device(device)
    dataset = load_data(data, data_dir=data_dir)
    spare = min(len(dataset) - n, 2000)
    if n < 1 or spare < 1:
        raise SpecError(f"{data} has {len(dataset)} images: -n must leave some to set the threshold on, got {n}.")
    model = load_classifier(classifier, shape=dataset.shape).to(where)
    held_out, _ = dataset.batch(range(len(dataset) - spare, len(dataset)))
    detector = calibrate(model, held_out.to(where), rate)
    x, y = (part.to(where) for part in dataset.batch(range(n)))
    blind = attack(model, x, y, limits, "apgd-ce", seed=seed)
    parts = zip(x.split(250), y.split(250), strict=True)
    won = torch.cat([bypass(detector, a, b, limits, seed=seed, steps=steps)[1] for a, b in parts])
    flagged = detector.flags(x)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    lost_blind = detector.beaten(blind, y) | ~right | flagged

    def share(mask: torch.Tensor) -> Estimate:
        return proportion(int(mask.sum()), n)

    return {
        "classifier": classifier, "threat": str(limits), "n": n, "threshold": detector.threshold,
        "false_positives": share(flagged), "clean": share(right & ~flagged), "robust_blind": share(~lost_blind),
        "robust": share(~(won | lost_blind)),
    }  # fmt: skip
