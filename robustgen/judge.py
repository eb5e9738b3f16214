"""The judge: the only part that may call an image broken. It trusts neither the attack nor the search form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustgen.memory import is_memory_error
from robustgen.precision import standard_layout
from robustgen.threat import ThreatModel

__all__ = ["Judge", "Verdict", "strict_float32"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured, row by row.

    Attributes:
        broken: (B,) bool: inside the threat model and misclassified.
        inside: (B,) bool: finite, in [0, 1], within eps.
        prediction: (B,) int64; -1 where the logits are not finite.
        distance: (B,) float64 in the norm of the threat model.
    """

    broken: Tensor
    inside: Tensor
    prediction: Tensor
    distance: Tensor


class Judge:
    """Measures distance, range and prediction of exactly the images that get stored.

    Args:
        classifier: the untouched reference, float32, eval mode.
        threat: what the adversary may do.
    """

    def __init__(self, classifier: nn.Module, threat: ThreatModel) -> None:
        self.classifier = classifier
        self.threat = threat

    def predict(self, x: Tensor) -> Tensor:
        """(B,) int64: the class of each image x (B, C, H, W); -1 where a logit is not finite.

        Where memory runs out, the batch is judged in halves.
        """
        try:
            with torch.no_grad():
                logits = self.classifier(standard_layout(x))
        except RuntimeError as error:
            if len(x) == 1 or not is_memory_error(error):
                raise
            return torch.cat([self.predict(half) for half in x.tensor_split(2)])
        return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)

    def __call__(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Verdict:
        """Judge x_adv (B, C, H, W) against the clean x and the labels y (B,).

        Logits that are not finite are a failure of the model, not a success of the attack: never broken.
        """
        prediction = self.predict(x_adv)
        inside = self.threat.contains(x, x_adv)
        broken = inside & (prediction != y) & (prediction >= 0)
        return Verdict(broken, inside, prediction, self.threat.distance(x, x_adv))


class strict_float32:  # noqa: N801 -- used as a function: `with strict_float32():`
    """Context in which float32 means float32: TF32 and cudnn.benchmark off, restored afterwards."""

    def __enter__(self) -> None:
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        self._held = (cudnn.allow_tf32, cudnn.benchmark, cuda.matmul.allow_tf32)
        cudnn.allow_tf32 = cudnn.benchmark = cuda.matmul.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        cudnn.allow_tf32, cudnn.benchmark, cuda.matmul.allow_tf32 = self._held
